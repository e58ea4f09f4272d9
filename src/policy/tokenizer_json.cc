// Reader for the subset of Hugging Face's tokenizer.json that Gemma's tokenizers use.
#include "checkpoint/json.h"
#include "policy/vocabulary.h"
#include "tensor/check.h"

namespace tendon {
namespace {

using nlohmann::json;

// A member that may be absent or null.
const json* optional_member(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

void add_vocabulary(Vocabulary& v, const json& vocab, const std::string& file) {
  ensure(vocab.is_object() && !vocab.empty() && std::ssize(vocab) <= kPiecesMax, Fault::checkpoint,
         "{}: model.vocab is not an object of 1 to {} pieces", file, kPiecesMax);
  for (const auto& [piece, id] : vocab.items()) {
    ensure(id.is_number_integer() && id >= 0 && id < kPiecesMax, Fault::checkpoint,
           "{}: piece '{}' has id {}, expected 0 to {}", file, piece.substr(0, 60), id.dump(),
           kPiecesMax - 1);
    ensure(!piece.empty() && piece.size() <= kPieceBytesMax, Fault::checkpoint,
           "{}: piece {} has {} bytes, expected 1 to {}", file, id.dump(), piece.size(),
           kPieceBytesMax);
    const auto number = id.get<int32_t>();
    v.size = std::max<int64_t>(v.size, number + 1);
    if (const std::optional<int> value = byte_piece(piece))
      v.bytes[static_cast<size_t>(*value)] = number;
    else
      v.ids.emplace(piece, number);
  }
  // The byte piece of the tab is stored as the character itself.
  const auto tab = v.ids.find(std::string_view("\t"));
  if (v.bytes['\t'] < 0 && tab != v.ids.end()) v.bytes['\t'] = tab->second;
  for (size_t b = 0; b < v.bytes.size(); ++b)
    ensure(v.bytes[b] >= 0, Fault::checkpoint, "{}: there is no piece for byte 0x{:02X}", file, b);
}

// Ids in the vocabulary of any piece, byte pieces included.
int32_t id_of(const Vocabulary& v, const json& vocab, std::string_view piece,
              const std::string& file) {
  const auto found = v.ids.find(piece);
  if (found != v.ids.end()) return found->second;
  const auto member = vocab.find(piece);
  ensure(member != vocab.end(), Fault::checkpoint, "{}: a merge names '{}', which is no piece",
         file, piece.substr(0, 60));
  return member->get<int32_t>();
}

void add_merges(Vocabulary& v, const json& model, const std::string& file) {
  const json* merges = optional_member(model, "merges");
  ensure(merges && merges->is_array() && merges->size() <= size_t{8} * kPiecesMax,
         Fault::checkpoint, "{}: model.merges is not an array of merges", file);
  const json& vocab = model.at("vocab");
  v.pairs.reserve(merges->size());
  double priority = 0;  // earlier merges go first
  for (const json& merge : *merges) {
    std::string left, right;
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      ensure(space != std::string::npos, Fault::checkpoint, "{}: merge '{}' has no space", file,
             text.substr(0, 60));
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      ensure(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(),
             Fault::checkpoint, "{}: merge {} is neither \"a b\" nor [\"a\", \"b\"]", file,
             merge.dump().substr(0, 60));
      left = merge[0];
      right = merge[1];
    }
    const int32_t a = id_of(v, vocab, left, file), b = id_of(v, vocab, right, file);
    const int32_t joined = id_of(v, vocab, left + right, file);
    v.pairs.emplace(Vocabulary::pair_key(a, b), Merge{priority, joined});
    priority -= 1;
  }
}

void add_tokens(Vocabulary& v, const json& root, const std::string& file) {
  const json* tokens = optional_member(root, "added_tokens");
  ensure(tokens && tokens->is_array() && std::ssize(*tokens) <= kPiecesMax, Fault::checkpoint,
         "{}: added_tokens is not an array", file);
  for (const json& token : *tokens) {
    const std::string content = json_string(token, "content", file);
    const int64_t id = json_int(token, "id", file);
    ensure(!content.empty() && content.size() <= kPieceBytesMax, Fault::checkpoint,
           "{}: added token {} has {} bytes", file, id, content.size());
    for (const char* option : {"single_word", "lstrip", "rstrip"})
      ensure(!token.value(option, false), Fault::checkpoint,
             "{}: added token '{}' asks for {}, which Gemma's tokenizers do not", file, content,
             option);
    if (content == "<bos>") v.bos = static_cast<int32_t>(id);
    if (id < 0 || id >= v.size) continue;  // no row in the embedding
    (token.value("normalized", false) ? v.whole : v.raw).add(content, static_cast<int32_t>(id));
  }
  v.raw.sort();
  v.whole.sort();
}

// Gemma's: every ' ' becomes U+2581 and nothing else; no splitting at spaces before the merges.
void check_pipeline(const json& root, const std::string& file) {
  const json* normalizer = optional_member(root, "normalizer");
  const json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}};
  ensure(normalizer && normalizer->value("type", "") == "Replace" &&
             normalizer->value("content", "") == kSpaceMark &&
             normalizer->value("pattern", json()) == replace.at("pattern"),
         Fault::checkpoint, "{}: normalizer is {}, expected Replace of ' ' by U+2581", file,
         normalizer ? normalizer->dump().substr(0, 100) : "missing");
  // Newer files split at ' ', which the normalizer has already replaced: no effect.
  const json* split = optional_member(root, "pre_tokenizer");
  ensure(!split || (split->value("type", "") == "Split" &&
                    split->value("pattern", json()) == replace.at("pattern")),
         Fault::checkpoint, "{}: pre_tokenizer is {}, expected none", file,
         split ? split->dump().substr(0, 100) : "");
}

}  // namespace

Vocabulary read_tokenizer_json(std::span<const std::byte> bytes, const std::string& name) {
  const json root = parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name);
  ensure(root.is_object(), Fault::checkpoint, "{}: expected an object", name);
  const json* model = optional_member(root, "model");
  ensure(model && model->is_object() && optional_member(*model, "vocab"), Fault::checkpoint,
         "{}: model.vocab is missing; is it Hugging Face's tokenizer.json?", name);
  try {
    ensure(model->value("type", "BPE") == "BPE" && model->value("byte_fallback", false) &&
               !model->value("ignore_merges", false),
           Fault::checkpoint, "{}: model is not BPE with byte_fallback and without ignore_merges",
           name);
    check_pipeline(root, name);
    Vocabulary v(MergeRule::listed_pairs);
    add_vocabulary(v, model->at("vocab"), name);
    add_merges(v, *model, name);
    add_tokens(v, root, name);
    ensure(v.bos >= 0, Fault::checkpoint, "{}: there is no added token '<bos>'", name);
    return v;
  } catch (const json::exception& e) {  // a member of another type
    fail(Fault::checkpoint, "{}: {}", name, e.what());
  }
}

}  // namespace tendon
