// Recorded observations against the inputs and the statistics of the model.
#include <algorithm>
#include <cmath>

#include "checkpoint/json.h"
#include "policy/processors.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

using nlohmann::json;

// Degrees for radians are a factor of 57, millimetres for metres 1000: what a robot really does
// stays within a few deviations, or within one more width of the quantiles on either side.
constexpr double kDeviationsMax = 8, kQuantilesMax = 3;
constexpr double kEpsilon = 1e-6;  // openpi's epsilon

std::vector<double> read_state(const json& root, const std::string& file) {
  std::vector<double> state;
  const auto append = [&](const char* key) {
    ensure(root.contains(key) && root.at(key).is_array(), Fault::input,
           "{}: '{}' is missing or no list", file, key);
    for (const json& v : root.at(key)) {
      ensure(v.is_number(), Fault::input, "{}: {}[{}] is {}, expected a number", file, key,
             state.size(), v.dump().substr(0, 40));
      state.push_back(v.get<double>());
    }
  };
  if (root.contains("joint_position") && !root.contains("state")) {  // DROID
    append("joint_position");
    append("gripper_position");
  } else {
    append("state");
  }
  return state;
}

// Keys of an object, or names in a list.
std::vector<std::string> read_cameras(const json& root) {
  std::vector<std::string> names;
  const json cameras = root.value("cameras", json::object());
  for (const auto& [key, value] : cameras.items())
    names.push_back(camera_name(cameras.is_array() && value.is_string() ? value : json(key)));
  return names;
}

void judge_cameras(const std::vector<std::string>& sent, const std::string& file,
                   const PolicySpec& around, Report& r) {
  const std::vector<std::string> own = robot_cameras(around);
  for (const std::string& camera : sent)
    if (std::ranges::find(around.slots, camera) == around.slots.end() &&
        !around.cameras.contains(camera))
      r.error("observation.camera", camera,
              "{}: the model has no camera '{}'; it has {}; nearest: '{}'", file, camera,
              fmt::join(own, ", "), nearest(camera, own));
}

void judge_state(const std::vector<double>& state, const std::vector<double>& sent,
                 const std::string& file, const StoredStatistics& s, Report& r) {
  const auto [low_name, high_name] = statistic_names(s.method);
  const auto low = s.rows.find(low_name), high = s.rows.find(high_name);
  if (s.method == NormMethod::identity || low == s.rows.end() || high == s.rows.end()) return;
  const size_t dims = std::min({state.size(), low->second.size(), high->second.size()});
  for (size_t d = 0; d < dims; ++d) {
    const double a = low->second[d], b = high->second[d];
    const bool deviations = s.method == NormMethod::mean_std;
    const double spread = std::max(deviations ? b : b - a, kEpsilon);
    const double normalized =
        deviations ? (state[d] - a) / spread : 2 * (state[d] - a) / spread - 1;
    const double limit = deviations ? kDeviationsMax : kQuantilesMax;
    if (!(std::abs(normalized) > limit)) continue;
    r.add(Finding::Level::warning, "observation.range", fmt::format("state[{}]", d),
          "{}: state[{}] is {:.6g} and becomes {:.3g}, expected within {}; {} and {} of {} are "
          "{:.6g} and {:.6g}: are units and order those of the training data?",
          file, d, sent[d], normalized, limit, low_name, high_name, s.file, a, b);
  }
}

}  // namespace

void check_observation(const std::string& file, const Examined& m,
                       const std::optional<StoredStatistics>& statistics, Report& r) {
  r.attempt("observation.unreadable", file, [&] {
    const json root = read_json(file);
    ensure(root.is_object(), Fault::input, "{}: expected an object, got {}", file,
           root.type_name());
    const std::vector<double> sent = read_state(root, file);
    std::vector<double> state = sent;
    bool fits = true;
    if (m.opened) {
      const PolicySpec& around = m.opened->spec;
      fits = std::ssize(sent) >= around.narrowest_state() && std::ssize(sent) <= around.state_dim;
      judge_cameras(read_cameras(root), file, around, r);
      if (fits) {  // as it is normalised
        const States states = state_to_model(around.transforms, state);
        state = states[states.size() - 2];
      }
    }
    if (!fits)
      r.error("observation.dimension", "state",
              "{}: the state has {} values, this model expects {}; is it the same robot?", file,
              sent.size(), state_dims(m.opened->spec.state_dim, m.opened->spec.state_dim_min));
    else if (statistics)
      judge_state(state, sent, file, *statistics, r);
  });
}

}  // namespace tendon
