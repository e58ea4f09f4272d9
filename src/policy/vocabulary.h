// The tables of a byte-pair tokenizer, the same for both file formats that fill them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tensor/utf8.h"

namespace tendon {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581
inline constexpr size_t kTokenizerBytesMax = size_t{64} << 20;
inline constexpr size_t kPieceBytesMax = 1024;
inline constexpr int64_t kPiecesMax = 512 * 1024;

// Lets a std::string_view look up a std::string key without a copy.
struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using PieceIds = std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>>;

// Pieces that are cut out of a text before anything is merged, the longest first.
class PieceSet {
 public:
  struct Match {
    size_t bytes;
    int32_t id;
  };
  void add(std::string piece, int32_t id) { pieces_.emplace_back(std::move(piece), id); }
  // Call once after the last add().
  void sort();
  bool empty() const { return pieces_.empty(); }
  // The longest piece that `text` begins with.
  std::optional<Match> longest(std::string_view text) const;

 private:
  std::vector<std::pair<std::string, int32_t>> pieces_;  // by bytes, as unsigned
};

// A pair of neighbours becomes `id`; of all pairs of a text the highest priority goes first, the
// leftmost on ties.
struct Merge {
  double priority;
  int32_t id;
};

// SentencePiece merges whatever two neighbours spell a piece; Hugging Face lists pairs of ids.
enum class MergeRule { spelling, listed_pairs };

struct Vocabulary {
  explicit Vocabulary(MergeRule how) : rule(how) { bytes.fill(-1); }

  MergeRule rule;
  int64_t size = 0;            // highest id + 1
  PieceIds ids;                // pieces that text can become; not control or byte pieces
  std::vector<float> scores;   // [size], MergeRule::spelling only
  size_t piece_bytes_max = 0;  // longest key of `ids`
  std::unordered_map<uint64_t, Merge> pairs;  // pair_key(left, right), listed_pairs only
  std::array<int32_t, 256> bytes{};           // ids of characters outside the vocabulary
  PieceSet raw;    // cut out of the text as it comes (Hugging Face's added tokens)
  PieceSet whole;  // cut out after ' ' became U+2581; never merged with a neighbour
  int32_t bos = -1;

  static uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
};

// Both throw Error(Fault::checkpoint) naming `name`, the field, what was found and what is needed,
// and treat the bytes as hostile: at most kPiecesMax pieces of kPieceBytesMax bytes, no recursion.

// A SentencePiece model (sentencepiece_model.proto): type BPE with byte fallback, no normalisation
// but ' ' to U+2581, as PaliGemma's and Gemma's.
Vocabulary read_sentencepiece(std::span<const std::byte> bytes, const std::string& name);

// Hugging Face's tokenizer.json of the same tokenizers. Added tokens whose id is above the table of
// the model (PaliGemma's <image> = 257152) have no embedding and stay ordinary text.
Vocabulary read_tokenizer_json(std::span<const std::byte> bytes, const std::string& name);

// 0 to 255 for "<0x00>" to "<0xFF>".
std::optional<int> byte_piece(std::string_view piece);

}  // namespace tendon
