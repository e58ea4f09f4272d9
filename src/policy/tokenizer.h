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

  // What append() works in, for the next text.
  class Memory {
    friend Tokenizer;
    // A stretch of the text that is one token so far; neighbours are linked by index.
    struct Symbol {
      uint32_t begin, bytes;  // bytes = 0: merged into its left neighbour
      int32_t previous, next;
      int32_t id;  // kNone: a character outside the vocabulary
      bool whole;  // never merged
    };
    struct Candidate {
      double priority;
      int32_t left, right;
      uint32_t bytes;
      int32_t id;
      bool operator<(const Candidate& other) const {
        if (priority != other.priority) return priority < other.priority;
        return left > other.left;
      }
    };
    std::string escaped_;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> queue_;  // a heap
  };

  // Appends the ids of the text without BOS, in O(n log n) time. Throws Error(Fault::input) when
  // the text is not valid UTF-8, with the position of the byte, or longer than 16 MiB.
  void append(std::string_view utf8, std::vector<int32_t>& ids, Memory& memory) const;
  std::vector<int32_t> encode(std::string_view utf8) const {
    std::vector<int32_t> ids;
    Memory memory;
    append(utf8, ids, memory);
    return ids;
  }

  int32_t bos() const { return vocabulary_.bos; }
  // Highest id + 1: the rows that the embedding must have at least.
  int64_t vocabulary() const { return vocabulary_.size; }

 private:
  explicit Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

  using Symbol = Memory::Symbol;
  using Candidate = Memory::Candidate;
  void append_part(std::string_view part, std::vector<int32_t>& ids, Memory& memory) const;
  void split(Memory& memory) const;
  void merge(Memory& memory) const;
  bool candidate(std::string_view text, const std::vector<Symbol>& symbols, int32_t left,
                 Candidate& found) const;

  Vocabulary vocabulary_;
};

// Throws Error(Fault::input) "`what` is not valid UTF-8 ..." with the position of the byte.
void check_utf8(std::string_view text, std::string_view what);

}  // namespace tendon
