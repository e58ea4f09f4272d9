// "Did you mean ...?": the known name that takes the fewest edits from the one that was asked for.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tendon {

// The first of `known` with the smallest edit distance (insert, delete, replace: 1 each) to
// `wanted`; empty when `known` is. Of longer names only the first 256 bytes count, so that a
// hostile name costs little. The result views into `known`.
std::string_view nearest(std::string_view wanted, std::span<const std::string> known);

}  // namespace tendon
