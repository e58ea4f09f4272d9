#include "demo/judging.h"

namespace tendon::demo {

Episode Trial::episode() const {
  Random random(seed);
  return new_episode(random, verb, pairs);
}

std::vector<Trial> trials(int count, uint64_t seed, const std::vector<Verb>& verbs,
                          const std::vector<Pairs>& pairs) {
  std::vector<Trial> all;
  for (int i = 0; i < count; ++i) {
    const auto verb = static_cast<size_t>(i) % verbs.size();
    const auto pair = static_cast<size_t>(i) / verbs.size() % pairs.size();
    all.push_back(
        {.seed = seed + static_cast<uint64_t>(i), .verb = verbs[verb], .pairs = pairs[pair]});
  }
  return all;
}

std::string kind_of(const Trial& trial) {
  const std::string verb(name(trial.verb));
  return trial.pairs == Pairs::seen ? verb : verb + ", unseen pair";
}

Task other_task(const Episode& episode) {
  Task task = episode.task;
  for (const Object& object : episode.world.objects)
    if (object.kind != episode.task.target) task.target = object.kind;
  return task;
}

}  // namespace tendon::demo
