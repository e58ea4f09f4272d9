#include "policy/prompt.h"

#include <algorithm>
#include <array>

#include "tensor/check.h"

namespace tendon {
namespace {

// What Python's str.strip() takes off, in UTF-8.
constexpr std::array<std::string_view, 29> kWhiteSpace = {
    "\t",           "\n",           "\v",           "\f",           "\r",
    "\x1c",         "\x1d",         "\x1e",         "\x1f",         " ",
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
    "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
    "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
    "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

// openpi's cleaning: white space off both ends, '_' and line breaks become spaces.
void append_clean(std::string_view text, std::string& line) {
  for (const char c : strip(text)) line += c == '_' || c == '\n' ? ' ' : c;
}

}  // namespace

std::string_view strip(std::string_view text) {
  const auto shorten = [&](auto matches, auto remove) {
    for (bool found = true; found;) {
      const auto* const space = std::ranges::find_if(kWhiteSpace, matches);
      found = space != kWhiteSpace.end();
      if (found) remove(space->size());
    }
  };
  shorten([&](std::string_view s) { return text.starts_with(s); },
          [&](size_t n) { text.remove_prefix(n); });
  shorten([&](std::string_view s) { return text.ends_with(s); },
          [&](size_t n) { text.remove_suffix(n); });
  return text;
}

int state_bin(double value) {
  // The edges are exact in binary, so comparing is exact where (value + 1) * 128 would round.
  int bin = -1;
  for (int step = 128; step > 0; step /= 2)
    while (bin + step <= 255 && !(value < -1.0 + (bin + step) / 128.0)) bin += step;
  return bin;
}

std::string task_and_state(std::string_view text, std::span<const double> state,
                           const PromptOptions& options, std::string line) {
  line = "Task: ";
  append_clean(text, line);
  line += ", State: ";
  const int64_t values = options.padded_state.value_or(std::ssize(state));
  for (int64_t i = 0; i < values; ++i)
    fmt::format_to(std::back_inserter(line), "{}{}", i == 0 ? "" : " ",
                   state_bin(i < std::ssize(state) ? state[static_cast<size_t>(i)] : 0.0));
  line += ";\nAction: ";
  return line;
}

PromptTokens tokenize_prompt(const Tokenizer& tokenizer, std::string_view text,
                             std::span<const double> state, const PromptOptions& options,
                             PromptTokens tokens) {
  check_utf8(text, "the prompt");
  std::string& line = tokens.line;
  const auto append = [&](std::string_view part) {
    tokenizer.append(part, tokens.ids, tokens.memory);
  };
  tokens.ids.assign(1, tokenizer.bos());
  if (options.state_in_prompt) {
    line = task_and_state(text, state, options, std::move(line));
    append(line);
  } else if (options.style == Family::openpi) {
    line.clear();
    append_clean(text, line);
    append(line);
    append("\n");
  } else {
    line = text;
    if (!text.ends_with('\n')) line += '\n';
    append(line);
  }
  tokens.untruncated = std::ssize(tokens.ids);
  if (tokens.untruncated > options.tokens_max)
    tokens.ids.resize(static_cast<size_t>(options.tokens_max));
  return tokens;
}

}  // namespace tendon
