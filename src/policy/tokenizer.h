// Text to token ids: PaliGemma's byte-pair tokenizer, from either of its two published files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy/vocabulary.h"

namespace tendon {

// Immutable and safe to share between threads.
class Tokenizer {
 public:
  // By the extension of the file's name (.model, .json), else by its first byte. SentencePiece
  // (`paligemma_tokenizer.model`, `tokenizer.model`): ids are SentencePiece's. Hugging Face
  // (`tokenizer.json`): ids are those of its tokenizers library, which differ from SentencePiece's
  // where the text spells a special token ("<bos>") or holds more than 31 spaces. Both throw
  // Error(Fault::checkpoint) naming the file, the field and what is needed.
  static Tokenizer open(const std::filesystem::path& path);
  static Tokenizer from_bytes(std::span<const std::byte> bytes, const std::string& name);
  // For synthetic models: every byte of the text is one token, by PaliGemma's ids of byte pieces
  // (217 + byte).
  static Tokenizer of_bytes();

  // Ids of the text without BOS, in O(n log n) time. Throws Error(Fault::input) when the text is
  // not valid UTF-8, with the position of the byte, or longer than 16 MiB.
  std::vector<int32_t> encode(std::string_view utf8) const;

  int32_t bos() const { return vocabulary_.bos; }
  int32_t pad() const { return vocabulary_.pad; }
  // Highest id + 1: the rows that the embedding must have at least.
  int64_t vocabulary() const { return vocabulary_.size; }

 private:
  explicit Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

  struct Symbol;
  struct Candidate;
  void encode_part(std::string_view part, std::vector<int32_t>& ids) const;
  std::vector<Symbol> split(std::string_view text) const;
  void merge(std::string_view text, std::vector<Symbol>& symbols) const;
  bool candidate(std::string_view text, const std::vector<Symbol>& symbols, int32_t left,
                 Candidate& found) const;

  Vocabulary vocabulary_;
};

// Throws Error(Fault::input) "`what` is not valid UTF-8 ..." with the position of the byte.
void check_utf8(std::string_view text, std::string_view what);

}  // namespace tendon
