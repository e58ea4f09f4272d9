// labels: unit
// links: sentencepiece
// The tokenizer against published ids, and against Debian's SentencePiece on random text.
#include "policy/tokenizer.h"

#include <sentencepiece_processor.h>

#include <ctime>
#include <random>

#include "policy/prompt.h"
#include "test_files.h"

using namespace tendon;

namespace {

const std::string kModel = TENDON_TEST_TOKENIZER;

const Tokenizer& paligemma() {
  static const Tokenizer tokenizer = Tokenizer::from_model_file(kModel);
  return tokenizer;
}

const sentencepiece::SentencePieceProcessor& oracle() {
  static const auto processor = [] {
    auto p = std::make_unique<sentencepiece::SentencePieceProcessor>();
    EXPECT_TRUE(p->Load(kModel).ok());
    return p;
  }();
  return *processor;
}

void append_utf8(std::string& to, uint32_t c) {
  if (c < 0x80) {
    to += static_cast<char>(c);
  } else if (c < 0x800) {
    to += static_cast<char>(0xC0 | (c >> 6));
    to += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    to += static_cast<char>(0xE0 | (c >> 12));
    to += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    to += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    to += static_cast<char>(0xF0 | (c >> 18));
    to += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    to += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    to += static_cast<char>(0x80 | (c & 0x3F));
  }
}

// Words, digits, runs of white space, special spellings and characters of every plane.
std::string random_text(std::mt19937_64& random) {
  static const std::vector<std::string> words = {
      "pick",   "up",   " the", " red", " block", "State: ", ";\nAction: ", "<loc0001>", "<bos>",
      "<seg00", "\n\n", "   ",  "\t\t", "2 55",   "\u2581",  "<b>",         "</b>",      "robot",
      "<0x41>", "\r\n", "é",    "→",    "🤖",   "中文",    "\u0000a",     "ffi",       "_"};
  std::string text;
  const int parts = static_cast<int>(random() % 24);
  for (int i = 0; i < parts; ++i) {
    if (random() % 3 != 0) {
      text += words[random() % words.size()];
      continue;
    }
    const uint64_t plane = random() % 4;
    uint32_t c = static_cast<uint32_t>(random() % (plane == 0   ? 0x80
                                                   : plane == 1 ? 0x800
                                                   : plane == 2 ? 0x10000
                                                                : 0x110000));
    if (c >= 0xD800 && c < 0xE000) c = 'x';
    append_utf8(text, c);
  }
  return text;
}

}  // namespace

TEST(Tokenizer, every_golden_text_has_its_published_ids) {
  const auto json = read_json(test_data("tokenizer/tokenizer_golden.json"));
  int compared = 0;
  for (const auto& row : json.at("raw")) {
    EXPECT_EQ(paligemma().encode(row.at("text").get<std::string>()),
              row.at("ids").get<std::vector<int32_t>>())
        << row.at("text");
    ++compared;
  }
  for (const auto& row : json.at("pi0")) {
    const PromptOptions options{.style = PromptStyle::openpi, .tokens_max = 1000};
    EXPECT_EQ(tokenize_prompt(paligemma(), row.at("prompt").get<std::string>(), {}, options).ids,
              row.at("ids").get<std::vector<int32_t>>())
        << row.at("prompt");
    ++compared;
  }
  for (const auto& row : json.at("pi05")) {
    std::vector<double> state;
    for (const int bin : row.at("state_bins")) state.push_back((bin + 0.5) / 128.0 - 1.0);
    const PromptOptions options{
        .style = PromptStyle::openpi, .state_in_prompt = true, .tokens_max = 1000};
    EXPECT_EQ(tokenize_prompt(paligemma(), row.at("prompt").get<std::string>(), state, options).ids,
              row.at("ids").get<std::vector<int32_t>>())
        << row.at("prompt");
    ++compared;
  }
  EXPECT_EQ(compared, 110);
}

TEST(Tokenizer, ten_thousand_random_texts_give_the_ids_of_sentencepiece) {
  std::mt19937_64 random(20261124);
  for (int i = 0; i < 10000; ++i) {
    const std::string text = random_text(random);
    std::vector<int> expected;
    ASSERT_TRUE(oracle().Encode(text, &expected).ok());
    ASSERT_EQ(paligemma().encode(text), std::vector<int32_t>(expected.begin(), expected.end()))
        << "text " << i << ": " << text;
  }
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
  const auto says = [&whole](const char* pointer, const nlohmann::json& value, const char* part) {
    auto json = whole;
    json[nlohmann::json::json_pointer(pointer)] = value;
    const std::string text = json.dump();
    const Error e = refused(
        [&text] { Tokenizer::from_json_bytes(std::as_bytes(std::span(text)), "tokenizer.json"); });
    EXPECT_EQ(e.fault(), Fault::checkpoint);
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
  };
  says("/model/type", "Unigram", "BPE");
  says("/model/vocab", nullptr, "model.vocab");
  says("/model/vocab/x", -4, "piece 'x' has id -4");
  says("/model/vocab/x", kPiecesMax, "piece 'x' has id 524288, expected 0 to 524287");
  says("/model/merges/0/1", "nowhere", "nowhere");
  says("/normalizer", nullptr, "normalizer");
  says("/added_tokens/0/lstrip", true, "lstrip");
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

TEST(Tokenizer, invalid_utf8_is_refused_with_the_position) {
  for (const std::string bad :
       {"ab\xFF", "ab\xC0\xAF", "ab\xED\xA0\x80", "ab\xF4\x90\x80\x80", "ab\xE2\x82", "ab\x80"}) {
    const Error e = refused([&] { paligemma().encode(bad); });
    EXPECT_EQ(e.fault(), Fault::input);
    EXPECT_NE(std::string(e.what()).find("position 2"), std::string::npos) << e.what();
  }
}

TEST(Tokenizer, a_cut_or_altered_model_file_is_refused_or_reads_but_never_crashes) {
  const std::string whole = read_whole(kModel).substr(0, 60000);
  std::mt19937_64 random(7);
  for (int i = 0; i < 200; ++i) {
    std::string bytes = whole.substr(0, random() % whole.size());
    for (int flip = 0; flip < 4 && !bytes.empty(); ++flip)
      bytes[random() % bytes.size()] ^= static_cast<char>(1 << random() % 8);
    const Error e =
        refused([&] { Tokenizer::from_model_bytes(std::as_bytes(std::span(bytes)), "cut.model"); });
    EXPECT_EQ(e.fault(), Fault::checkpoint);  // no cut file has all byte pieces and specifications
  }
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
    const Error e =
        refused([&] { Tokenizer::from_model_bytes(std::as_bytes(std::span(kept)), "part.model"); });
    EXPECT_NE(std::string(e.what()).find("no pieces, trainer or normalizer"), std::string::npos);
  }
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
          .style = key.ends_with("openpi") ? PromptStyle::openpi : PromptStyle::lerobot,
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
