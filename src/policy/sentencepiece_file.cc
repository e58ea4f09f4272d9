// Reader for the subset of sentencepiece_model.proto that decides the ids of a text.
#include <bit>
#include <cmath>
#include <string>

#include "policy/vocabulary.h"
#include "tensor/check.h"

namespace tendon {
namespace {

// Values of SentencePiece.Type.
enum PieceType : uint64_t { normal = 1, unknown = 2, control = 3, user_defined = 4, byte = 6 };

// One field of a protobuf message: a number or a stretch of bytes.
struct Field {
  uint64_t number = 0, value = 0;
  std::span<const std::byte> bytes;
};

// Walks over the fields of one message; lengths are checked against what is left.
class Message {
 public:
  Message(std::span<const std::byte> bytes, const std::string& file) : rest_(bytes), file_(file) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = {.number = tag >> 3};
    switch (tag & 7) {
      case 0: field.value = varint(); break;
      case 1: field.value = fixed(8); break;
      case 2: field.bytes = take(varint()); break;
      case 5: field.value = fixed(4); break;
      default:
        fail(Fault::checkpoint, "{}: wire type {} is not protobuf; is it a SentencePiece model?",
             file_, tag & 7);
    }
    return true;
  }

 private:
  std::span<const std::byte> take(uint64_t count) {
    ensure(count <= rest_.size(), Fault::checkpoint,
           "{}: a field of {} bytes with {} bytes left; the file is cut or not a SentencePiece "
           "model",
           file_, count, rest_.size());
    const auto taken = rest_.first(static_cast<size_t>(count));
    rest_ = rest_.subspan(static_cast<size_t>(count));
    return taken;
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto b = static_cast<uint64_t>(take(1)[0]);
      value |= (b & 0x7F) << shift;
      if (b < 0x80) return value;
    }
    fail(Fault::checkpoint, "{}: a number of more than 10 bytes; is it a SentencePiece model?",
         file_);
  }

  uint64_t fixed(unsigned bytes) {
    uint64_t value = 0;
    const auto taken = take(bytes);
    for (unsigned i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(taken[i]) << (8 * i);
    return value;
  }

  std::span<const std::byte> rest_;
  const std::string& file_;
};

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct Piece {
  std::string text;
  float score = 0;
  uint64_t type = normal;
};

Piece read_piece(std::span<const std::byte> bytes, const std::string& file, int64_t id) {
  ensure(bytes.size() <= kPieceBytesMax + 32, Fault::checkpoint,
         "{}: piece {} has {} bytes, at most {} are read", file, id, bytes.size(), kPieceBytesMax);
  Piece piece;
  Message message(bytes, file);
  for (Field f; message.next(f);) {
    if (f.number == 1) piece.text = text_of(f.bytes);
    if (f.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(f.value));
    if (f.number == 3) piece.type = f.value;
  }
  ensure(!piece.text.empty() && piece.text.size() <= kPieceBytesMax && !invalid_utf8(piece.text),
         Fault::checkpoint, "{}: piece {} is empty, too long or not UTF-8", file, id);
  ensure(std::isfinite(piece.score), Fault::checkpoint, "{}: piece {} has score {}", file, id,
         piece.score);
  return piece;
}

void check_trainer(std::span<const std::byte> bytes, const std::string& file) {
  uint64_t model_type = 1, byte_fallback = 0;
  Message message(bytes, file);
  for (Field f; message.next(f);) {
    if (f.number == 3) model_type = f.value;
    if (f.number == 35) byte_fallback = f.value;
  }
  ensure(model_type == 2 && byte_fallback == 1, Fault::checkpoint,
         "{}: model type {} with byte fallback {}; PaliGemma's tokenizer is BPE (2) with byte "
         "fallback (1)",
         file, model_type, byte_fallback);
}

void check_normalizer(std::span<const std::byte> bytes, const std::string& file) {
  uint64_t dummy_prefix = 1, remove_spaces = 1, escape_spaces = 1;
  size_t charsmap = 0;
  Message message(bytes, file);
  for (Field f; message.next(f);) {
    if (f.number == 2) charsmap = f.bytes.size();
    if (f.number == 3) dummy_prefix = f.value;
    if (f.number == 4) remove_spaces = f.value;
    if (f.number == 5) escape_spaces = f.value;
  }
  ensure(dummy_prefix == 0 && remove_spaces == 0 && escape_spaces == 1 && charsmap == 0,
         Fault::checkpoint,
         "{}: normalisation with add_dummy_prefix {}, remove_extra_whitespaces {}, "
         "escape_whitespaces {} and a character map of {} bytes; PaliGemma's tokenizer has 0, 0, 1 "
         "and none",
         file, dummy_prefix, remove_spaces, escape_spaces, charsmap);
}

void add_piece(Vocabulary& v, Piece piece, int32_t id, const std::string& file) {
  v.scores.push_back(piece.score);
  switch (piece.type) {
    case user_defined: v.whole.add(piece.text, id); [[fallthrough]];
    case normal:
      v.piece_bytes_max = std::max(v.piece_bytes_max, piece.text.size());
      ensure(v.ids.emplace(piece.text, id).second, Fault::checkpoint,
             "{}: piece '{}' is there twice", file, piece.text);
      break;
    case byte: {
      const std::optional<int> value = byte_piece(piece.text);
      ensure(value.has_value(), Fault::checkpoint, "{}: byte piece {} is called '{}'", file, id,
             piece.text);
      v.bytes[static_cast<size_t>(*value)] = id;
      break;
    }
    case unknown: break;
    case control:
      if (piece.text == "<bos>" || piece.text == "<s>") v.bos = id;
      break;
    default:
      fail(Fault::checkpoint, "{}: piece {} has type {}, which PaliGemma's tokenizer does not use",
           file, id, piece.type);
  }
}

}  // namespace

Vocabulary read_sentencepiece(std::span<const std::byte> bytes, const std::string& name) {
  Vocabulary v(MergeRule::spelling);
  bool trainer = false, normalizer = false;
  Message message(bytes, name);
  for (Field f; message.next(f);) {
    if (f.number == 1) {
      ensure(v.size < kPiecesMax, Fault::checkpoint, "{}: more than {} pieces", name, kPiecesMax);
      add_piece(v, read_piece(f.bytes, name, v.size), static_cast<int32_t>(v.size), name);
      ++v.size;
    } else if (f.number == 2) {
      check_trainer(f.bytes, name);
      trainer = true;
    } else if (f.number == 3) {
      check_normalizer(f.bytes, name);
      normalizer = true;
    }
  }
  ensure(trainer && normalizer && v.size > 0, Fault::checkpoint,
         "{}: no pieces, trainer or normalizer specification; is it a SentencePiece model?", name);
  ensure(v.bos >= 0, Fault::checkpoint, "{}: there is no control piece '<bos>' or '<s>'", name);
  for (size_t b = 0; b < v.bytes.size(); ++b)
    ensure(v.bytes[b] >= 0, Fault::checkpoint, "{}: there is no piece for byte 0x{:02X}", name, b);
  v.whole.sort();
  return v;
}

}  // namespace tendon
