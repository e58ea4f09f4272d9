// What happens to states and actions between a robot and the model: a list of transforms, as
// openpi's training configs and lerobot's processors have one. A state goes forward through the
// list, actions of the model come back through the inverses, a previous chunk goes forward.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "policy/statistics.h"

namespace tendon {

// ALOHA's 14 joints into the space that pi0 was trained in: two joints per arm are flipped, the
// grippers go from travel to angle (openpi's adapt_to_pi).
struct AlohaJoints {
  static constexpr size_t kJoints = 14;
};

// model = robot * scale + offset, value by value from the first on: degrees, joints that turn the
// other way, grippers of another range.
struct Affine {
  enum class Of { both, state, actions };
  Of of = Of::both;
  std::vector<double> scale, offset;  // as long as each other
};

// Actions relative to the state where `mask` says so. lerobot takes the state as it is at this
// place, in float; openpi takes it as Unnormalize gives it back, in double.
struct DeltaActions {
  std::vector<bool> mask;
  Family family = Family::openpi;
};

using Transform = std::variant<AlohaJoints, Affine, DeltaActions, Normalize>;
using Transforms = std::vector<Transform>;

// The state as each transform finds it and, last, as the model sees it; in the memory of `states`.
using States = std::vector<std::vector<double>>;
States state_to_model(const Transforms& transforms, std::span<const double> state,
                      States states = {});

// How many values of a state the transforms before the normalisation read.
int64_t state_needed(const Transforms& transforms);

// The robot's state that Normalize, the last transform, finds as `state`: the inverses of all
// before it. ALOHA's grippers come back as a travel of 0 to 1.
std::vector<double> state_to_robot(const Transforms& transforms, std::vector<double> state);

// Rows of actions, in place, at the state of this observation.
void actions_to_robot(const Transforms& transforms, const States& states, std::span<double> actions,
                      size_t rows = 1);
void actions_to_model(const Transforms& transforms, const States& states, std::span<double> actions,
                      size_t rows = 1);

// The first transform of a kind, or nullptr.
template <class Kind>
const Kind* find(const Transforms& transforms) {
  for (const Transform& t : transforms)
    if (const Kind* kind = std::get_if<Kind>(&t)) return kind;
  return nullptr;
}

// lerobot: all dims but those whose name contains an excluded word, in any case; without names all.
std::vector<bool> mask_of_names(const std::vector<std::string>& action_names,
                                const std::vector<std::string>& excluded, int64_t dim);

}  // namespace tendon
