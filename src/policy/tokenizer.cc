// Byte-pair encoding with a queue of candidate merges; the algorithm is in SentencePiece's
// bpe_model.cc and, with listed pairs, in Hugging Face's models/bpe/word.rs.
#include "policy/tokenizer.h"

#include <algorithm>
#include <span>

#include "checkpoint/files.h"
#include "tensor/check.h"

namespace tendon {
namespace {

constexpr size_t kTextBytesMax = size_t{16} << 20;
constexpr int32_t kNone = -1;

}  // namespace

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

Tokenizer Tokenizer::from_bytes(std::span<const std::byte> bytes, const std::string& name) {
  ensure(bytes.size() <= kTokenizerBytesMax, Fault::checkpoint,
         "{} has {} bytes; a tokenizer has at most {}", name, bytes.size(), kTokenizerBytesMax);
  const bool braces = !bytes.empty() && bytes[0] == std::byte{'{'};
  const bool is_json = name.ends_with(".json") || (braces && !name.ends_with(".model"));
  return Tokenizer(is_json ? read_tokenizer_json(bytes, name) : read_sentencepiece(bytes, name));
}

Tokenizer Tokenizer::of_bytes() {
  Vocabulary v(MergeRule::spelling);
  v.size = 217 + 256;
  v.bos = 2;
  for (size_t b = 0; b < v.bytes.size(); ++b) v.bytes[b] = static_cast<int32_t>(217 + b);
  return Tokenizer(std::move(v));
}

Tokenizer Tokenizer::open(const std::filesystem::path& path) {
  ensure(is_file(path), Fault::checkpoint,
         "{} is not a readable file; name the paligemma_tokenizer.model or tokenizer.json of the "
         "checkpoint with --tokenizer FILE",
         path.string());
  const std::string text = read_file(path, kTokenizerBytesMax);
  return from_bytes(std::as_bytes(std::span(text)), path.string());
}

void check_utf8(std::string_view text, std::string_view what) {
  const std::optional<size_t> at = invalid_utf8(text);
  if (at)
    fail(Fault::input, "{} is not valid UTF-8: byte 0x{:02x} at position {}; send it as UTF-8",
         what, static_cast<unsigned char>(text[*at]), *at);
}

void Tokenizer::append(std::string_view utf8, std::vector<int32_t>& ids, Memory& memory) const {
  ensure(utf8.size() <= kTextBytesMax, Fault::input,
         "the text has {} bytes; at most {} can be tokenized", utf8.size(), kTextBytesMax);
  check_utf8(utf8, "the text");
  size_t begin = 0, at = 0;
  while (at < utf8.size() && !vocabulary_.raw.empty()) {
    const auto match = vocabulary_.raw.longest(utf8.substr(at));
    if (!match) {
      at += character_bytes(utf8[at]);
      continue;
    }
    append_part(utf8.substr(begin, at - begin), ids, memory);
    ids.push_back(match->id);
    begin = at += match->bytes;
  }
  append_part(utf8.substr(begin), ids, memory);
}

void Tokenizer::append_part(std::string_view part, std::vector<int32_t>& ids,
                            Memory& memory) const {
  if (part.empty()) return;
  memory.escaped_.clear();
  for (const char c : part)
    if (c == ' ')
      memory.escaped_ += kSpaceMark;
    else
      memory.escaped_ += c;
  split(memory);
  merge(memory);
  const std::vector<Symbol>& symbols = memory.symbols_;
  for (int32_t i = 0; i != kNone; i = symbols[static_cast<size_t>(i)].next) {
    const Symbol& symbol = symbols[static_cast<size_t>(i)];
    if (symbol.id != kNone) {
      ids.push_back(symbol.id);
      continue;
    }
    for (const char c : std::string_view(memory.escaped_).substr(symbol.begin, symbol.bytes))
      ids.push_back(vocabulary_.bytes[static_cast<unsigned char>(c)]);
  }
}

void Tokenizer::split(Memory& memory) const {
  const std::string_view text = memory.escaped_;
  std::vector<Symbol>& symbols = memory.symbols_;
  symbols.clear();
  symbols.reserve(text.size());
  const auto push = [&](size_t begin, size_t bytes, int32_t id, bool whole) {
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({.begin = static_cast<uint32_t>(begin),
                       .bytes = static_cast<uint32_t>(bytes),
                       .previous = index - 1,
                       .next = index + 1,
                       .id = id,
                       .whole = whole});
  };
  for (size_t at = 0; at < text.size();) {
    if (const auto match = vocabulary_.whole.longest(text.substr(at))) {
      push(at, match->bytes, match->id, true);
      at += match->bytes;
      continue;
    }
    const size_t bytes = character_bytes(text[at]);
    const auto known = vocabulary_.ids.find(text.substr(at, bytes));
    if (known != vocabulary_.ids.end()) {
      push(at, bytes, known->second, false);
    } else if (vocabulary_.rule == MergeRule::spelling) {
      push(at, bytes, kNone, false);
    } else {
      // Hugging Face falls back to bytes before it merges, so that listed pairs may hold them.
      for (size_t i = at; i < at + bytes; ++i)
        push(i, 1, vocabulary_.bytes[static_cast<unsigned char>(text[i])], false);
    }
    at += bytes;
  }
  symbols.back().next = kNone;
}

// Whether `left` and its right neighbour may become one token.
bool Tokenizer::candidate(std::string_view text, const std::vector<Symbol>& symbols, int32_t left,
                          Candidate& found) const {
  if (left == kNone) return false;
  const Symbol& a = symbols[static_cast<size_t>(left)];
  if (a.next == kNone || a.whole) return false;
  const Symbol& b = symbols[static_cast<size_t>(a.next)];
  if (b.whole) return false;
  found = {.priority = 0, .left = left, .right = a.next, .bytes = a.bytes + b.bytes, .id = kNone};
  if (vocabulary_.rule == MergeRule::listed_pairs) {
    const auto pair = vocabulary_.pairs.find(Vocabulary::pair_key(a.id, b.id));
    if (pair == vocabulary_.pairs.end()) return false;
    found.priority = pair->second.priority;
    found.id = pair->second.id;
    return true;
  }
  if (found.bytes > vocabulary_.piece_bytes_max) return false;
  const auto piece = vocabulary_.ids.find(text.substr(a.begin, found.bytes));
  if (piece == vocabulary_.ids.end()) return false;
  found.id = piece->second;
  found.priority = vocabulary_.scores[static_cast<size_t>(found.id)];
  return true;
}

void Tokenizer::merge(Memory& memory) const {
  std::vector<Symbol>& symbols = memory.symbols_;
  std::vector<Candidate>& queue = memory.queue_;
  Candidate found{};
  const auto is_candidate = [&](int32_t left) {
    return candidate(memory.escaped_, symbols, left, found);
  };
  queue.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i)
    if (is_candidate(static_cast<int32_t>(i))) queue.push_back(found);
  std::make_heap(queue.begin(), queue.end());
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end());
    const Candidate best = queue.back();
    queue.pop_back();
    Symbol& left = symbols[static_cast<size_t>(best.left)];
    Symbol& right = symbols[static_cast<size_t>(best.right)];
    // One of the two has grown or is gone since: symbols only grow, so the sum tells.
    if (left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != best.bytes) continue;
    left.bytes = best.bytes;
    left.id = best.id;
    left.next = right.next;
    if (right.next != kNone) symbols[static_cast<size_t>(right.next)].previous = best.left;
    right.bytes = 0;
    for (const int32_t place : {left.previous, best.left})
      if (is_candidate(place)) {
        queue.push_back(found);
        std::push_heap(queue.begin(), queue.end());
      }
  }
}

}  // namespace tendon
