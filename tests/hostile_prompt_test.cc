// labels: hostile
// links: sentencepiece
// Prompts of every script and of none: the ids of SentencePiece, or a refusal that names the place.
#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include <random>

#include "policy/tokenizer.h"
#include "test_files.h"

using namespace tendon;

namespace {

const Tokenizer& paligemma() {
  static const Tokenizer tokenizer = Tokenizer::from_model_file(TENDON_TEST_TOKENIZER);
  return tokenizer;
}

std::vector<int32_t> ids_of_sentencepiece(const std::string& text) {
  static const auto processor = [] {
    auto p = std::make_unique<sentencepiece::SentencePieceProcessor>();
    EXPECT_TRUE(p->Load(TENDON_TEST_TOKENIZER).ok());
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
  const Error e = refused([&] { paligemma().encode(text); });
  EXPECT_EQ(e.fault(), Fault::input);
  EXPECT_NE(std::string(e.what()).find(fmt::format("position {}", wrong)), std::string::npos)
      << e.what();
  return false;
}

}  // namespace

TEST(HostilePrompt, of_characters_of_every_plane_has_the_ids_of_sentencepiece) {
  std::mt19937 random(21);
  int characters = 0;
  for (uint32_t plane = 0; plane <= 0x10; ++plane)
    for (int text = 0; text < 60; ++text) {
      std::string prompt;
      for (int i = 0; i < 20; ++i) {
        const uint32_t c = plane << 16 | static_cast<uint32_t>(random() & 0xFFFF);
        if (c >= 0xD800 && c < 0xE000) continue;  // surrogates are no characters
        prompt += utf8(c);
        ++characters;
      }
      ASSERT_TRUE(encoded(prompt)) << plane;
    }
  fmt::print("row 21: {} characters of 17 planes\n", characters);
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

TEST(HostilePrompt, of_ten_thousand_random_strings_is_encoded_or_refused_at_the_right_place) {
  const std::string parts[] = {"pick ",
                               "\xff",
                               "\xc0\xaf",
                               "\xed\xa0\x80",
                               "\u0301",
                               "\u200d",
                               "\U0001f916",
                               "\u202e",
                               "\xf4\x90\x80\x80",
                               "\xe2\x82",
                               std::string(1, '\0'),
                               "\xf0\x80\x80\x80",
                               "\u2581",
                               " "};
  std::mt19937 random(22);
  int valid = 0;
  for (int i = 0; i < 10000; ++i) {
    std::string text;
    for (auto part = random() % 12; part > 0; --part) {
      const bool good = random() % 16 != 0;
      text += good ? utf8(static_cast<uint32_t>(random() % 0xD800))
                   : parts[random() % std::size(parts)];
    }
    if (random() % 8 == 0 && !text.empty()) text.resize(random() % text.size());
    valid += encoded(text);
  }
  EXPECT_GT(valid, 3000);
  EXPECT_LT(valid, 9000);
  fmt::print("row 21: 10000 random strings, {} of them UTF-8\n", valid);
}
