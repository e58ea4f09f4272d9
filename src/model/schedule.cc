// What depends on the denoising time alone: computed once per number of steps.
#include "model/pi0.h"
#include "tensor/check.h"

namespace tendon {

namespace {

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
  const int64_t count = std::ssize(t);
  const Config& c = m.config;
  const Tensor embedding =
      ops.embed_times({t, c.expert.width, c.min_period, c.max_period, sequence});
  Tensor mix, condition;
  if (c.pi05()) {
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
