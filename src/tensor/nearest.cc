#include "tensor/nearest.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

namespace tendon {
namespace {

constexpr size_t kNameBytesMax = 256;

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);  // distances from a[0, i) to every prefix of b
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string_view nearest(std::string_view wanted, std::span<const std::string> known) {
  std::string_view best;
  size_t best_edits = 2 * kNameBytesMax;  // more than any pair can need
  for (const std::string& name : known) {
    const size_t edits = edit_distance(wanted.substr(0, kNameBytesMax),
                                       std::string_view(name).substr(0, kNameBytesMax));
    if (edits >= best_edits) continue;
    best = name;
    best_edits = edits;
  }
  return best;
}

}  // namespace tendon
