// What a call refuses, and what a text says.
#pragma once

#include <gtest/gtest.h>

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

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

// What a text has to have: one piece or several.
struct Pieces : std::vector<std::string> {
  template <std::convertible_to<std::string_view> Text>
  Pieces(const Text& piece) : vector{std::string(piece)} {}
  Pieces(std::initializer_list<std::string> pieces) : vector(pieces) {}
  Pieces(const std::vector<std::string>& pieces) : vector(pieces) {}
};

// Whether `text` has each of these.
inline testing::AssertionResult says(std::string_view text, const Pieces& pieces) {
  for (const std::string& piece : pieces)
    if (text.find(piece) == text.npos)
      return testing::AssertionFailure() << "'" << piece << "' is not in: " << text;
  return testing::AssertionSuccess();
}

inline int64_t count_of(std::string_view text, std::string_view piece) {
  int64_t count = 0;
  for (size_t at = 0; (at = text.find(piece, at)) != text.npos; ++at) ++count;
  return count;
}

// Whether one of `texts` has each of these.
inline testing::AssertionResult one_says(const std::vector<std::string>& texts,
                                         const Pieces& pieces) {
  for (const std::string& text : texts)
    if (says(text, pieces)) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "'" << pieces.front() << "' is in none of " << testing::PrintToString(texts);
}

// Whether `call` is refused with this fault and a message that has `pieces`.
template <class Call>
testing::AssertionResult refuses(Fault fault, const Pieces& pieces, Call call) {
  const Error e = refused(call);
  if (e.fault() == fault) return says(e.what(), pieces);
  return testing::AssertionFailure() << "fault " << static_cast<int>(e.fault()) << ": " << e.what();
}

}  // namespace tendon
