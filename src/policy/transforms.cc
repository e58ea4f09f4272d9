#include "policy/transforms.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

namespace tendon {
namespace {

constexpr std::array<size_t, 2> kAlohaGrippers = {6, 13};
constexpr std::array<size_t, 4> kAlohaFlipped = {1, 2, 8, 9};

// Gripper travel (0 closed, 1 open, of 18.44 to 58 mm) to the angle of its motor, normalised.
double gripper_angle(double travel) {
  const double v = travel * (0.05800 - 0.01844) + 0.01844;
  const double sine = (0.022 * 0.022 + v * v - 0.036 * 0.036) / (2 * 0.022 * v);
  const double angle = std::asin(std::clamp(sine, -1.0, 1.0));
  return (angle - 0.5476) / (1.6296 - 0.5476);
}

double gripper_travel(double action) { return (action + 0.5476 + 0.6213) / (1.4910 + 0.6213); }
double gripper_action(double travel) { return travel * (1.4910 + 0.6213) - 0.5476 - 0.6213; }

void adapt(std::span<double> joints, double (*gripper)(double)) {
  for (const size_t j : kAlohaFlipped) joints[j] = -joints[j];
  for (const size_t g : kAlohaGrippers) joints[g] = gripper(joints[g]);
}

using Row = std::span<double>;
using State = std::span<const double>;  // what relative actions are relative to

void state_forward(const AlohaJoints&, Row state) { adapt(state, gripper_angle); }
void forward(const AlohaJoints&, Row row, State) { adapt(row, gripper_action); }
void inverse(const AlohaJoints&, Row row, State) { adapt(row, gripper_travel); }

void scale_and_shift(const Affine& a, Row row) {
  for (size_t i = 0; i < std::min(row.size(), a.scale.size()); ++i)
    row[i] = row[i] * a.scale[i] + a.offset[i];
}
void state_forward(const Affine& a, Row state) {
  if (a.of != Affine::Of::actions) scale_and_shift(a, state);
}
void forward(const Affine& a, Row row, State) {
  if (a.of != Affine::Of::state) scale_and_shift(a, row);
}
void inverse(const Affine& a, Row row, State) {
  if (a.of == Affine::Of::state) return;
  for (size_t i = 0; i < std::min(row.size(), a.scale.size()); ++i)
    row[i] = (row[i] - a.offset[i]) / a.scale[i];
}

void state_inverse(const AlohaJoints&, Row state) {
  adapt(state, [](double angle) {
    double low = 0, high = 1;  // between which the angle rises with the travel
    for (int i = 0; i < 60; ++i) {
      const double middle = (low + high) / 2;
      (gripper_angle(middle) < angle ? low : high) = middle;
    }
    return low;
  });
}
void state_inverse(const Affine& a, Row state) {
  if (a.of == Affine::Of::actions) return;
  for (size_t i = 0; i < std::min(state.size(), a.scale.size()); ++i)
    state[i] = (state[i] - a.offset[i]) / a.scale[i];
}
void state_inverse(const DeltaActions&, Row) {}
void state_inverse(const Normalize&, Row) {}  // where the state already is

void state_forward(const DeltaActions&, Row) {}
void forward(const DeltaActions& t, Row row, State state) {
  for (size_t d = 0; d < std::min(row.size(), t.mask.size()); ++d)
    if (t.mask[d]) row[d] -= state[d];
}
void inverse(const DeltaActions& t, Row row, State state) {
  const bool single = t.family == Family::lerobot;
  for (size_t d = 0; d < std::min(row.size(), t.mask.size()); ++d)
    if (t.mask[d])
      row[d] =
          single ? static_cast<float>(row[d]) + static_cast<float>(state[d]) : row[d] + state[d];
}

void state_forward(const Normalize& n, Row state) { n.state.normalize(state); }
void forward(const Normalize& n, Row row, State) { n.action.renormalize(row); }
void inverse(const Normalize& n, Row row, State) { n.action.unnormalize(row); }

// Of transform `i`, for DeltaActions.
std::vector<double> anchor(const Transforms& transforms, const States& states, size_t i) {
  const auto* delta = std::get_if<DeltaActions>(&transforms[i]);
  if (!delta) return {};
  const Normalize* next =
      i + 1 < transforms.size() ? std::get_if<Normalize>(&transforms[i + 1]) : nullptr;
  const bool seen_by_model = delta->family == Family::openpi && next;
  std::vector<double> state = states[seen_by_model ? i + 2 : i];
  if (seen_by_model || delta->family == Family::lerobot)
    for (double& v : state) v = static_cast<float>(v);
  if (seen_by_model) next->state.unnormalize(state);
  return state;
}

int64_t needed(const AlohaJoints&) { return AlohaJoints::kJoints; }
int64_t needed(const Affine& a) { return a.of == Affine::Of::actions ? 0 : std::ssize(a.scale); }
int64_t needed(const DeltaActions& t) {
  return std::find(t.mask.rbegin(), t.mask.rend(), true).base() - t.mask.begin();
}
int64_t needed(const Normalize&) { return 0; }

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

States state_to_model(const Transforms& transforms, std::span<const double> state, States states) {
  states.resize(transforms.size() + 1);
  states[0].assign(state.begin(), state.end());
  for (size_t i = 0; i < transforms.size(); ++i) {
    states[i + 1] = states[i];
    std::visit([&](const auto& t) { state_forward(t, states[i + 1]); }, transforms[i]);
  }
  return states;
}

int64_t state_needed(const Transforms& transforms) {
  int64_t most = 0;
  for (const Transform& transform : transforms)
    most = std::max(most, std::visit([](const auto& t) { return needed(t); }, transform));
  return most;
}

std::vector<double> state_to_robot(const Transforms& transforms, std::vector<double> state) {
  for (size_t i = transforms.size(); i-- > 0;)
    std::visit([&](const auto& t) { state_inverse(t, state); }, transforms[i]);
  return state;
}

void actions_to_robot(const Transforms& transforms, const States& states, std::span<double> actions,
                      size_t rows) {
  const size_t dim = actions.size() / rows;
  for (size_t i = transforms.size(); i-- > 0;) {
    const std::vector<double> state = anchor(transforms, states, i);
    for (size_t r = 0; r < rows; ++r)
      std::visit([&](const auto& t) { inverse(t, actions.subspan(r * dim, dim), state); },
                 transforms[i]);
  }
}

void actions_to_model(const Transforms& transforms, const States& states, std::span<double> actions,
                      size_t rows) {
  const size_t dim = actions.size() / rows;
  for (size_t i = 0; i < transforms.size(); ++i) {
    const std::vector<double> state = anchor(transforms, states, i);
    for (size_t r = 0; r < rows; ++r)
      std::visit([&](const auto& t) { forward(t, actions.subspan(r * dim, dim), state); },
                 transforms[i]);
  }
}

std::vector<bool> mask_of_names(const std::vector<std::string>& action_names,
                                const std::vector<std::string>& excluded, int64_t dim) {
  std::vector<bool> mask(static_cast<size_t>(dim), true);
  for (size_t d = 0; d < std::min(mask.size(), action_names.size()); ++d)
    for (const std::string& word : excluded)
      if (lower(action_names[d]).find(lower(word)) != std::string::npos) mask[d] = false;
  return mask;
}

}  // namespace tendon
