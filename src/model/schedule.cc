// What depends on the denoising time alone: computed once per number of steps.
#include <cmath>
#include <numbers>

#include "model/pi0.h"
#include "tensor/check.h"

namespace tendon {

namespace {

// Sines, then cosines, of t · 2π / period_i; period_i runs from min to max geometrically.
template <class Float>
void embed_time(Float t, const Config& config, std::span<float> to) {
  const size_t half = to.size() / 2;
  const Float low = static_cast<Float>(config.min_period);
  const Float ratio = static_cast<Float>(config.max_period) / low;
  for (size_t i = 0; i < half; ++i) {
    const Float fraction =
        half > 1 ? static_cast<Float>(i) / static_cast<Float>(half - 1) : Float{0};
    const Float period = low * std::pow(ratio, fraction);
    const Float angle = t * (Float{2} * std::numbers::pi_v<Float> / period);
    to[i] = static_cast<float>(std::sin(angle));
    to[half + i] = static_cast<float>(std::cos(angle));
  }
}

std::vector<float> times(int64_t steps, TimeSequence sequence) {
  std::vector<float> t;
  float accumulated = 1.f;
  for (int64_t k = 0; k < steps; ++k) {
    const double exact = 1.0 + static_cast<double>(k) * (-1.0 / static_cast<double>(steps));
    t.push_back(sequence == TimeSequence::lerobot ? static_cast<float>(exact) : accumulated);
    accumulated += static_cast<float>(-1.0 / static_cast<double>(steps));
  }
  return t;
}

// Scale, shift and gate of one norm for all steps: condition [steps, width] -> one row per step.
std::vector<Modulation> modulations(Ops& ops, const GemmaNorm& norm, const Tensor& condition,
                                    int64_t steps) {
  if (!norm.ada_scale) return std::vector<Modulation>(static_cast<size_t>(steps), {norm.scale});
  const Tensor scale = ops.linear(condition, norm.ada_scale);  // [steps, width], as those below
  const Tensor shift = ops.linear(condition, norm.ada_shift);
  const Tensor gate = ops.linear(condition, norm.ada_gate);
  std::vector<Modulation> rows;
  for (int64_t k = 0; k < steps; ++k)
    rows.push_back({ops.slice_rows(scale, k, k + 1), ops.slice_rows(shift, k, k + 1),
                    ops.slice_rows(gate, k, k + 1)});
  return rows;
}

}  // namespace

std::vector<StepTables> step_tables(Ops& ops, const Model& m, std::span<const float> t,
                                    TimeSequence sequence) {
  const Ops::Scope scope(ops, Module::common);
  const int64_t count = std::ssize(t), width = m.config.expert.width;
  std::vector<float> embeddings(static_cast<size_t>(count * width));
  for (size_t k = 0; k < t.size(); ++k) {
    const auto row =
        std::span(embeddings).subspan(k * static_cast<size_t>(width), static_cast<size_t>(width));
    if (sequence == TimeSequence::lerobot) embed_time<double>(t[k], m.config, row);
    if (sequence == TimeSequence::openpi) embed_time<float>(t[k], m.config, row);
  }
  const Tensor embedding = ops.upload(embeddings, {count, width});
  Tensor mix, condition;
  if (m.config.pi05()) {
    const Epilogue silu{.activation = Activation::silu};
    condition =
        ops.linear(ops.linear(embedding, m.weights.time_in, silu), m.weights.time_out, silu);
  } else {
    mix = ops.linear(embedding, m.weights.action_time_mlp_in_time);
  }

  std::vector<StepTables> tables;
  for (int64_t k = 0; k < count; ++k) {
    StepTables step{.time = t[static_cast<size_t>(k)],
                    .time_embedding = ops.slice_rows(embedding, k, k + 1)};
    if (mix) step.mix = ops.slice_rows(mix, k, k + 1);
    if (condition) step.condition = ops.slice_rows(condition, k, k + 1);
    tables.push_back(std::move(step));
  }
  const auto spread = [&](const GemmaNorm& norm, const auto& place) {
    const std::vector<Modulation> rows = modulations(ops, norm, condition, count);
    for (size_t k = 0; k < rows.size(); ++k) place(tables[k], rows[k]);
  };
  for (const GemmaBlock& block : m.weights.expert.blocks) {
    spread(block.norm1, [](StepTables& s, const Modulation& row) { s.attention.push_back(row); });
    spread(block.norm2, [](StepTables& s, const Modulation& row) { s.mlp.push_back(row); });
  }
  spread(m.weights.expert.norm, [](StepTables& s, const Modulation& row) { s.final = row; });
  return tables;
}

Schedule make_schedule(Ops& ops, const Model& m, int64_t steps, TimeSequence sequence) {
  ensure(steps >= 1 && steps <= 1000, Fault::input, "{} denoising steps; 1 to 1000 make sense",
         steps);
  return {step_tables(ops, m, times(steps, sequence), sequence),
          static_cast<float>(-1.0 / static_cast<double>(steps))};
}

}  // namespace tendon
