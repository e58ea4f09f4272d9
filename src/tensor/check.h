// One line to refuse something, with the values that made it wrong.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "tendon/error.h"

namespace tendon {

template <class... Args>
[[noreturn]] void fail(Fault fault, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(fault, fmt::format(text, std::forward<Args>(args)...));
}

template <class... Args>
void ensure(bool ok, Fault fault, fmt::format_string<Args...> text, Args&&... args) {
  if (!ok) [[unlikely]]
    fail(fault, text, std::forward<Args>(args)...);
}

}  // namespace tendon
