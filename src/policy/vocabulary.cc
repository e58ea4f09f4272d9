#include "policy/vocabulary.h"

#include <algorithm>

namespace tendon {

void PieceSet::sort() { std::sort(pieces_.begin(), pieces_.end()); }

std::optional<PieceSet::Match> PieceSet::longest(std::string_view text) const {
  // Each byte of the text narrows the range of pieces that share it; a piece that ends here is the
  // first of its range.
  auto first = pieces_.begin(), last = pieces_.end();
  std::optional<Match> match;
  for (size_t depth = 0; first != last; ++depth) {
    if (first->first.size() == depth) {
      match = Match{depth, first->second};
      if (++first == last) break;
    }
    if (depth == text.size()) break;
    const auto byte = static_cast<unsigned char>(text[depth]);
    const auto at = [depth](const auto& piece) {
      return static_cast<unsigned char>(piece.first[depth]);
    };
    first = std::partition_point(first, last, [&](const auto& piece) { return at(piece) < byte; });
    last = std::partition_point(first, last, [&](const auto& piece) { return at(piece) == byte; });
  }
  return match;
}

std::optional<int> byte_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : piece.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9';
    if (!digit && (c < 'A' || c > 'F')) return std::nullopt;
    value = value * 16 + (digit ? c - '0' : c - 'A' + 10);
  }
  return value;
}

}  // namespace tendon
