// labels: unit
// links: sentencepiece
// The tokenizer against published ids, and against Debian's SentencePiece on prompts of every
// script and of none: its ids, or a refusal that names the place.
#include "policy/tokenizer.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <ctime>
#include <random>

#include "policy/prompt.h"
#include "test_files.h"

using namespace tendon;

namespace {

const std::string kModel = TENDON_TEST_TOKENIZER;

const Tokenizer& paligemma() {
  static const Tokenizer tokenizer = Tokenizer::open(kModel);
  return tokenizer;
}

std::vector<int32_t> ids_of_sentencepiece(const std::string& text) {
  static const auto processor = [] {
    auto p = std::make_unique<sentencepiece::SentencePieceProcessor>();
    EXPECT_TRUE(p->Load(kModel).ok());
    return p;
  }();
  std::vector<int> ids;
  EXPECT_TRUE(processor->Encode(text, &ids).ok());
  return {ids.begin(), ids.end()};
}

std::string utf8(uint32_t c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xC0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
}

// Table 3-7 of the Unicode standard, byte by byte: where the first ill-formed sequence begins, or
// npos.
size_t ill_formed(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t k) {
      return i + k < text.size() ? static_cast<uint8_t>(text[i + k]) : uint8_t{0};
    };
    const uint8_t first = byte(0);
    const size_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    if (first >= 0x80 && (first < 0xC2 || first > 0xF4)) return i;
    for (size_t k = 1; k < length; ++k) {
      const bool second = k == 1;
      const uint8_t low = second && first == 0xE0 ? 0xA0 : second && first == 0xF0 ? 0x90 : 0x80;
      const uint8_t high = second && first == 0xED ? 0x9F : second && first == 0xF4 ? 0x8F : 0xBF;
      if (byte(k) < low || byte(k) > high) return i;
    }
    i += length;
  }
  return std::string_view::npos;
}

std::string repeated(const std::string& part, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

// As the reference, or refused where it is no UTF-8; says which.
bool encoded(const std::string& text) {
  const size_t wrong = ill_formed(text);
  if (wrong == std::string::npos) {
    EXPECT_EQ(paligemma().encode(text), ids_of_sentencepiece(text)) << text.substr(0, 200);
    return true;
  }
  EXPECT_TRUE(
      refuses(Fault::input, fmt::format("position {}", wrong), [&] { paligemma().encode(text); }));
  return false;
}

// Words, digits, runs of white space, special spellings and characters of every plane; in some
// texts also what is no UTF-8, and some are cut.
std::string random_text(std::mt19937_64& random, bool broken) {
  static const std::vector<std::string> words = {
      "pick",        "up",        " the",   " red",   " block", "State: ",
      ";\nAction: ", "<loc0001>", "<bos>",  "<seg00", "\n\n",   "   ",
      "\t\t",        "2 55",      "\u2581", "<b>",    "</b>",   "robot",
      "<0x41>",      "\r\n",      "é",      "→",      "🤖",   "中文",
      "\u0301",      "ffi",       "_",      "\u202e", "\u200d", std::string(1, '\0') + "a"};
  static const std::string wrong[] = {"\xff",     "\xc0\xaf",         "\xed\xa0\x80",    "\x80",
                                      "\xe2\x82", "\xf4\x90\x80\x80", "\xf0\x80\x80\x80"};
  std::string text;
  for (auto parts = random() % 24; parts > 0; --parts) {
    if (broken && random() % 16 == 0) text += wrong[random() % std::size(wrong)];
    if (random() % 3 != 0) {
      text += words[random() % words.size()];
      continue;
    }
    const uint32_t ends[] = {0x80, 0x800, 0x10000, 0x110000};
    const auto c = static_cast<uint32_t>(random() % ends[random() % 4]);
    text += utf8(c >= 0xD800 && c < 0xE000 ? 'x' : c);
  }
  if (broken && random() % 8 == 0 && !text.empty()) text.resize(random() % text.size());
  return text;
}

}  // namespace

TEST(Tokenizer, every_golden_text_has_its_published_ids) {
  const auto json = read_json(test_data("tokenizer/tokenizer_golden.json"));
  int compared = 0;
  const auto expect_ids = [&](const nlohmann::json& row, const std::vector<int32_t>& ids) {
    EXPECT_EQ(ids, row.at("ids").get<std::vector<int32_t>>()) << row;
    ++compared;
  };
  for (const auto& row : json.at("raw"))
    expect_ids(row, paligemma().encode(row.at("text").get<std::string>()));
  for (const std::string kind : {"pi0", "pi05"})
    for (const auto& row : json.at(kind)) {
      std::vector<double> state;
      for (const int bin : row.value("state_bins", std::vector<int>()))
        state.push_back((bin + 0.5) / 128.0 - 1.0);
      const PromptOptions options{
          .style = Family::openpi, .state_in_prompt = kind == "pi05", .tokens_max = 1000};
      const auto prompt = row.at("prompt").get<std::string>();
      expect_ids(row, tokenize_prompt(paligemma(), prompt, state, options).ids);
    }
  EXPECT_EQ(compared, 110);
}

TEST(HostilePrompt, of_one_mebibyte_of_anything_has_the_ids_of_sentencepiece) {
  const std::string family = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 ";
  const std::string parts[] = {"fold the towel ",
                               family,
                               "e" + repeated("\u0301", 100),
                               "\u202e\u05e9\u05dc\u05d5\u05dd \u202d\u0627\u0644",
                               std::string(1, '\0') + "a",
                               "\u2581\u2581 \u00a0\u3000\t",
                               "\U0010fffd\U000e0001\ufffe"};
  const size_t bytes = 1 << (TENDON_TEST_SANITIZED ? 17 : 20);
  for (const std::string& part : parts) ASSERT_TRUE(encoded(repeated(part, bytes)));
  ASSERT_TRUE(encoded(""));
  fmt::print("row 21: {} prompts of {} KiB\n", std::size(parts), bytes >> 10);
}

TEST(HostilePrompt, of_random_texts_is_encoded_or_refused_at_the_right_place) {
  std::mt19937_64 random(22);
  int valid = 0;
  for (int i = 0; i < 10000; ++i) ASSERT_TRUE(encoded(random_text(random, false))) << i;
  for (int i = 0; i < 10000; ++i) valid += encoded(random_text(random, true));
  EXPECT_GT(valid, 3000);
  EXPECT_LT(valid, 9000);
  fmt::print("row 21: 20000 random texts, {} of them UTF-8\n", 10000 + valid);
}

// small_tokenizer.json is in the form of Gemma's, small_tokenizer_ids.json what Hugging Face's
// tokenizers library makes of 123 texts with it.
TEST(Tokenizer, hugging_face_file_gives_the_ids_of_its_library) {
  const Tokenizer tokenizer = Tokenizer::open(test_data("tokenizer/small_tokenizer.json"));
  EXPECT_EQ(tokenizer.bos(), 2);
  EXPECT_EQ(tokenizer.vocabulary(), 500);
  const auto rows = read_json(test_data("tokenizer/small_tokenizer_ids.json"));
  for (const auto& row : rows)
    EXPECT_EQ(tokenizer.encode(row.at("text").get<std::string>()),
              row.at("ids").get<std::vector<int32_t>>())
        << row.at("text");
  EXPECT_EQ(rows.size(), 123u);
}

TEST(Tokenizer, a_hugging_face_file_of_another_kind_is_refused_by_its_field) {
  const auto whole = read_json(test_data("tokenizer/small_tokenizer.json"));
  const auto refused_for = [&whole](const char* pointer, const nlohmann::json& value,
                                    const char* part) {
    auto json = whole;
    json[nlohmann::json::json_pointer(pointer)] = value;
    const std::string text = json.dump();
    EXPECT_TRUE(refuses(Fault::checkpoint, part, [&text] {
      Tokenizer::from_bytes(std::as_bytes(std::span(text)), "tokenizer.json");
    }));
  };
  refused_for("/model/type", "Unigram", "BPE");
  refused_for("/model/vocab", nullptr, "model.vocab");
  refused_for("/model/vocab/x", -4, "piece 'x' has id -4");
  refused_for("/model/vocab/x", kPiecesMax, "piece 'x' has id 524288, expected 0 to 524287");
  refused_for("/model/merges/0/1", "nowhere", "nowhere");
  refused_for("/normalizer", nullptr, "normalizer");
  refused_for("/added_tokens/0/lstrip", true, "lstrip");
}

TEST(Tokenizer, a_million_characters_cost_no_square) {
  const auto clocks = [](int words) {  // of this process: the machine may be busy
    std::string text;
    for (int i = 0; i < words; ++i) text += "aaaaaaaa a";
    const std::clock_t begin = std::clock();
    EXPECT_GT(paligemma().encode(text).size(), static_cast<size_t>(words) / 10);
    return std::clock() - begin;
  };
  clocks(10'000);
  EXPECT_LT(clocks(100'000), 30 * clocks(10'000));  // a square: 100 times
}

TEST(Tokenizer, a_model_file_without_pieces_trainer_or_normalizer_is_refused) {
  const std::string whole = read_whole(kModel);
  for (const int dropped : {1, 2, 3}) {
    std::string kept;
    for (size_t at = 0; at < whole.size();) {  // fields of a message: number, length, bytes
      size_t end = at + 1, bytes = 0;
      for (int shift = 0; shift == 0 || (whole[end - 1] & 0x80) != 0; shift += 7, ++end)
        bytes |= static_cast<size_t>(whole[end] & 0x7F) << shift;
      if (whole[at] >> 3 != dropped) kept += whole.substr(at, end + bytes - at);
      at = end + bytes;
    }
    EXPECT_TRUE(refuses(Fault::checkpoint, "no pieces, trainer or normalizer", [&] {
      Tokenizer::from_bytes(std::as_bytes(std::span(kept)), "part.model");
    }));
  }
}

TEST(Tokenizer, a_piece_of_1024_bytes_is_the_longest_that_is_read) {
  const auto field = [](const std::string& bytes) {  // the first of a message
    const size_t n = bytes.size();
    return std::string{'\n', static_cast<char>((n & 0x7F) | 0x80), static_cast<char>(n >> 7)} +
           bytes;
  };
  const auto with_piece = [&](const std::string& text) {
    const std::string score_and_type("\x15\0\0\0\0\x18\x04", 7);  // 0, one that is never split
    const std::string model = read_whole(kModel) + field(field(text) + score_and_type);
    return Tokenizer::from_bytes(std::as_bytes(std::span(model)), "longer.model");
  };
  const std::string longest(1024, 'z');
  const auto id = static_cast<int32_t>(paligemma().vocabulary());
  EXPECT_EQ(with_piece(longest).encode(longest), std::vector<int32_t>{id});
  EXPECT_TRUE(refuses(Fault::checkpoint, "too long", [&] { with_piece(longest + "z"); }));
}

TEST(Tokenizer, of_bytes_has_an_id_for_each_of_them_behind_217_others) {
  const Tokenizer bytes = Tokenizer::of_bytes();
  EXPECT_EQ(bytes.vocabulary(), 217 + 256);
  EXPECT_EQ(bytes.encode("a\u00E9"), std::vector<int32_t>({217 + 'a', 217 + 0xC3, 217 + 0xA9}));
}

TEST(Tokenizer, a_byte_piece_is_two_capital_digits_between_its_marks_and_nothing_else) {
  EXPECT_EQ(byte_piece("<0x00>"), 0x00);
  EXPECT_EQ(byte_piece("<0x9A>"), 0x9A);
  EXPECT_EQ(byte_piece("<0xFF>"), 0xFF);
  for (const char* other :
       {"", "<0x9A", "<0x9A>>", "<0x9a>", "<0xG0>", "(0x9A>", "<0x9A)", "<1x9A>"})
    EXPECT_EQ(byte_piece(other), std::nullopt) << other;
}

TEST(Prompt, every_golden_prompt_has_the_ids_of_its_front_end) {
  const auto json = read_json(test_data("preprocess/prompts.json"));
  int compared = 0;
  for (const std::string key : {"pi0_openpi", "pi0_lerobot", "pi05_openpi", "pi05_lerobot"})
    for (const auto& row : json.at(key)) {
      const PromptOptions options{
          .style = key.ends_with("openpi") ? Family::openpi : Family::lerobot,
          .state_in_prompt = key.starts_with("pi05"),
          .tokens_max = row.at("max_len").get<int64_t>()};
      const auto state = row.value("state", std::vector<double>());
      EXPECT_EQ(
          tokenize_prompt(paligemma(), row.at("prompt").get<std::string>(), state, options).ids,
          row.at("ids").get<std::vector<int32_t>>())
          << key << " " << row.at("prompt");
      ++compared;
    }
  EXPECT_GE(compared, 40);
}

TEST(Prompt, state_bins_are_those_of_numpy_digitize) {
  const auto json = read_json(test_data("preprocess/prompts.json"));
  for (const auto& row : json.at("discretize")) {
    if (!row.at("value").is_number()) continue;
    const double value = row.at("value");
    EXPECT_EQ(state_bin(value), row.at("bin_float64").get<int>()) << value;
    EXPECT_EQ(state_bin(static_cast<float>(value)), row.at("bin").get<int>()) << value;
  }
  EXPECT_EQ(state_bin(std::nan("")), 255);
}

TEST(Prompt, padding_the_state_writes_as_many_numbers_as_old_releases_did) {
  const std::vector<double> state = {0.0, -1.0};
  EXPECT_EQ(task_and_state("go", state, {.state_in_prompt = true, .padded_state = 4}),
            "Task: go, State: 128 0 128 128;\nAction: ");
}
