// What a call refuses, and what a text says.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "tendon/error.h"

namespace tendon {

// The fault and the message that `call` ends with; fails the test when it does not throw.
template <class Call>
Error refused(Call call) {
  try {
    call();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "nothing was refused";
  return {Fault::internal, ""};
}

// Whether `text` has each of these.
inline testing::AssertionResult says(std::string_view text,
                                     std::initializer_list<std::string_view> parts) {
  for (const std::string_view part : parts)
    if (text.find(part) == text.npos)
      return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
  return testing::AssertionSuccess();
}
inline testing::AssertionResult says(std::string_view text, std::string_view part) {
  return says(text, {part});
}

// Whether `call` is refused with this fault and a message that has `part`.
template <class Call>
testing::AssertionResult refuses(Fault fault, std::string_view part, Call call) {
  const Error e = refused(call);
  if (e.fault() == fault) return says(e.what(), part);
  return testing::AssertionFailure() << "fault " << static_cast<int>(e.fault()) << ": " << e.what();
}

}  // namespace tendon
