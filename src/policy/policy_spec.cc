// Whether the data around a network fit together and to it.
#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "policy/policy.h"
#include "tensor/check.h"
#include "tensor/nearest.h"

namespace tendon {

std::string quoted_names(const std::vector<std::string>& names) {
  return names.empty() ? "" : fmt::format("'{}'", fmt::join(names, "', '"));
}

std::string state_dims(int64_t most, const std::optional<int64_t>& least) {
  return (least ? fmt::format("{} to ", *least) : "") + std::to_string(most);
}

std::vector<std::string> robot_cameras(const PolicySpec& spec) {
  std::vector<std::string> names;
  for (const std::string& slot : spec.slots) {
    const auto camera =
        std::ranges::find_if(spec.cameras, [&](const auto& pair) { return pair.second == slot; });
    if (camera != spec.cameras.end()) names.push_back(camera->first);
  }
  return names;
}

namespace {

void check_cameras(const PolicySpec& spec, const Config& config) {
  const std::set<std::string> slots(spec.slots.begin(), spec.slots.end());
  ensure(!slots.empty() && slots.size() == spec.slots.size() &&
             std::cmp_less_equal(slots.size(), config.cameras),
         Fault::checkpoint, "the model's camera slots are {}, expected 1 to {} different names",
         quoted_names(spec.slots), config.cameras);
  for (const auto& [camera, slot] : spec.cameras)
    ensure(slot.empty() || std::ranges::find(spec.slots, slot) != spec.slots.end(),
           Fault::checkpoint,
           "camera '{}' is to be the model's '{}', which it does not have; it has {}; nearest: "
           "'{}'",
           camera, slot, quoted_names(spec.slots), nearest(slot, spec.slots));
  for (const std::string& camera : spec.required) {
    const auto found = spec.cameras.find(camera);
    ensure(found != spec.cameras.end() && !found->second.empty(), Fault::checkpoint,
           "camera '{}' is required, but is none that the model uses; those are {}", camera,
           quoted_names(robot_cameras(spec)));
  }
}

void check_transform(const AlohaJoints&, const PolicySpec& spec) {
  ensure(std::cmp_greater_equal(std::min(spec.state_dim, spec.action_dim), AlohaJoints::kJoints),
         Fault::checkpoint, "an ALOHA with {} joints and {} actions", spec.state_dim,
         spec.action_dim);
}

void check_transform(const Affine& a, const PolicySpec& spec) {
  const int64_t dim = a.of == Affine::Of::state     ? spec.state_dim
                      : a.of == Affine::Of::actions ? spec.action_dim
                                                    : std::min(spec.state_dim, spec.action_dim);
  ensure(a.scale.size() == a.offset.size() && std::ssize(a.scale) <= dim, Fault::checkpoint,
         "an affine transform with {} scales and {} offsets for {} values", a.scale.size(),
         a.offset.size(), dim);
  ensure(std::ranges::find(a.scale, 0.0) == a.scale.end(), Fault::checkpoint,
         "an affine transform with a scale of 0, which has no inverse");
}

void check_transform(const DeltaActions& delta, const PolicySpec& spec) {
  for (size_t d = 0; d < delta.mask.size(); ++d)
    ensure(!delta.mask[d] || std::cmp_less(d, spec.state_dim), Fault::checkpoint,
           "action {} is relative to the state, which has {} values", d, spec.state_dim);
}

void check_transform(const Normalize& normalize, const PolicySpec& spec) {
  for (const auto& [what, n, dim] : {std::tuple("state", &normalize.state, spec.state_dim),
                                     std::tuple("action", &normalize.action, spec.action_dim)})
    ensure(n->method == NormMethod::identity ||
               (std::ssize(n->centre) >= dim && n->range.size() == n->centre.size()),
           Fault::checkpoint, "the {} statistics have {} and {} values, this model needs {}", what,
           n->centre.size(), n->range.size(), dim);
}

}  // namespace

void check_spec(const PolicySpec& spec, const Config& config) {
  ensure(spec.state_dim >= 1 && spec.state_dim <= config.state_dim && spec.action_dim >= 1 &&
             spec.action_dim <= config.action_dim,
         Fault::checkpoint, "this robot has {} state and {} action dims, the model {} and {}",
         spec.state_dim, spec.action_dim, config.state_dim, config.action_dim);
  ensure(spec.narrowest_state() <= spec.state_dim &&
             (!spec.state_dim_min ||
              spec.narrowest_state() >= std::max<int64_t>(1, state_needed(spec.transforms))),
         Fault::checkpoint, "a state of at least {} values of {}, of which the transforms read {}",
         spec.narrowest_state(), spec.state_dim, state_needed(spec.transforms));
  check_cameras(spec, config);
  ensure(!spec.dark_bars || spec.resizer == Family::lerobot, Fault::checkpoint,
         "dark bars around pictures are lerobot 0.4's, but pictures are resized as openpi does");
  for (const Transform& transform : spec.transforms)
    std::visit([&](const auto& t) { check_transform(t, spec); }, transform);
  ensure(std::ssize(spec.action_names) == spec.action_dim, Fault::checkpoint,
         "{} action names for {} actions", spec.action_names.size(), spec.action_dim);
  const PromptOptions& prompt = spec.prompt;
  ensure(config.pi05() || !prompt.state_in_prompt, Fault::checkpoint,
         "the state is to be in the prompt, from which only pi0.5 reads it");
  ensure(prompt.tokens_max >= 1 && prompt.tokens_max <= config.max_token_len, Fault::checkpoint,
         "prompts of at most {} tokens, the model's {}", prompt.tokens_max, config.max_token_len);
  const int64_t padded = prompt.padded_state.value_or(spec.state_dim);
  ensure(padded >= spec.state_dim && padded <= config.state_dim, Fault::checkpoint,
         "a state of {} values, padded to {} in the prompt", spec.state_dim, padded);
  ensure(spec.folded_vocab.value_or(config.vocab) > 3, Fault::checkpoint,
         "token ids folded into {}", spec.folded_vocab.value_or(0));
}

}  // namespace tendon
