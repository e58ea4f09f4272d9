// A policy judged on many episodes.
#pragma once

#include <string>
#include <vector>

#include "demo/closed_loop.h"

namespace tendon::demo {

// What is drawn for episode `index` of a judgement: the same for every policy.
struct Trial {
  uint64_t seed = 0;
  Verb verb = Verb::reach;
  Pairs pairs = Pairs::seen;

  Episode episode() const;
};

// Reach and push in turn; `count` trials from `seed` on, in the kinds that are wanted.
std::vector<Trial> trials(int count, uint64_t seed, const std::vector<Verb>& verbs,
                          const std::vector<Pairs>& pairs);

// "reach", "push", "reach, unseen pair", "push, unseen pair"
std::string kind_of(const Trial& trial);

// A task that names another object of `episode` than its own: what a policy does that reads only
// half of the prompt.
Task other_task(const Episode& episode);

}  // namespace tendon::demo
