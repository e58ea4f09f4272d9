// What the robot shall do, as token ids: cleaning and templates of openpi and lerobot.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy/family.h"
#include "policy/tokenizer.h"

namespace tendon {

struct PromptOptions {
  Family style = Family::lerobot;
  // pi0.5's "Task: ..., State: ...;\nAction: "; else the cleaned text and a line break.
  bool state_in_prompt = false;
  // Old lerobot releases padded the state with zeros to this many values before writing it.
  std::optional<int64_t> padded_state;
  int64_t tokens_max = 48;
};

struct PromptTokens {
  std::vector<int32_t> ids;  // beginning with BOS, at most tokens_max
  int64_t untruncated = 0;   // how many there would have been
  // Of making them, for the next prompt.
  std::string line;
  Tokenizer::Memory memory;
};

// Without white space at both ends.
std::string_view strip(std::string_view text);

// The bin of a normalised state value: number of edges -1 + k / 128 (k = 0..255) that are <= value,
// minus 1; -1 below -1, 255 from 127/128 on.
int state_bin(double value);

// The text that pi0.5 reads, in the memory of `line`. `state` is normalised.
std::string task_and_state(std::string_view text, std::span<const double> state,
                           const PromptOptions& options, std::string line = {});

// In the memory of `tokens`. Throws Error(Fault::input) when the prompt is not valid UTF-8.
PromptTokens tokenize_prompt(const Tokenizer& tokenizer, std::string_view text,
                             std::span<const double> state, const PromptOptions& options,
                             PromptTokens tokens = {});

}  // namespace tendon
