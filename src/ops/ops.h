// What a model calls: checks every shape, counts and times every call, and owns the one fallback
// rule. An op that the backend lacks is an error, unless a fallback backend was given; then the op
// runs there and is counted as a fallback.
#pragma once

#include <array>
#include <map>
#include <string>
#include <vector>

#include "ops/kernels.h"

namespace tendon {

// What one kind of op cost so far.
struct OpCount {
  int64_t native_calls = 0, fallback_calls = 0;
  int64_t flops = 0;  // of products and attention; 0 for the rest
  int64_t bytes = 0;  // activations read and written
  int64_t weight_bytes = 0;
  int64_t bytes_moved = 0;  // across the fallback, both ways
  double seconds = 0;
};

struct Coverage {
  std::array<OpCount, kOpCount> ops{};

  const OpCount& of(Op op) const { return ops[static_cast<size_t>(op)]; }
  void add(const Coverage& other, int sign = 1);  // seconds stay: they belong to the clock
  int64_t native_calls() const;
  int64_t fallback_calls() const;
  int64_t flops() const;
  int64_t bytes() const;  // weights and activations
};

// Sees a tensor of the model by its name ("vlm.layer.3.norm1") and gives what the model goes on
// with: the same, or another one of its shape.
using Tap = std::function<Tensor(const std::string& name, const Tensor& x)>;

class Ops {
  struct Place {
    Module module = Module::pi0;
    int layer = -1, step = -1;  // -1: none
  };

 public:
  // `fallback` may be null. Both must outlive this object.
  explicit Ops(Kernels& kernels, Kernels* fallback = nullptr)
      : kernels_(kernels), fallback_(fallback) {}

  // What runs during the life of this object belongs to a module (or to the one around it) and,
  // where it is said, to a layer of it or to an Euler step; scopes nest.
  class Scope {
   public:
    Scope(Ops& ops, Module module) : Scope(ops, {module, -1, ops.place_.step}) {}
    static Scope layer(Ops& ops, size_t l) {
      return {ops, {ops.place_.module, static_cast<int>(l), ops.place_.step}};
    }
    static Scope step(Ops& ops, size_t k) {
      return {ops, {ops.place_.module, -1, static_cast<int>(k)}};
    }
    ~Scope() { ops_.place_ = before_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Scope(Ops& ops, const Place& place) : ops_(ops), before_(ops.place_) { ops.place_ = place; }
    Ops& ops_;
    Place before_;
  };

  // From now on `tap` sees the tensors that the model names, each under the step, module and layer
  // that it runs in: "step.0.expert.layer.3.norm1"; {}: nobody does. Nothing is recorded or
  // replayed meanwhile.
  void set_tap(Tap tap) { tap_ = std::move(tap); }
  bool is_tapped() const { return static_cast<bool>(tap_); }
  // x, or what the tap puts in its place. An empty name: that of the layer or module itself.
  Tensor tap(std::string_view name, const Tensor& x);
  // What a fused linear or qkv leaves out of sight, computed once more for the tap alone: the
  // product before residual and gate; queries, keys and values ("q", "k", "v") before the rotary
  // embedding.
  Tensor linear(std::string_view name, const Tensor& x, const Weight& w, const Epilogue& epilogue);
  Qkv qkv_tapped(const Tensor& x, const Weight& w, const Heads& heads, int64_t first_position);

  // These modules run on the fallback, whatever the backend has. Before any weight is prepared;
  // Error(Fault::usage) without a fallback.
  void keep_on_host(std::span<const Module> modules);

  Weight prepare(const WeightParts& parts);
  Tensor upload(std::span<const float> values, const Shape& shape);
  std::vector<float> download(const Tensor& x);
  void download(const Tensor& x, std::span<float> to);

  // The kernels' operations; their meaning and shapes are in kernels.h. Each throws
  // Error(Fault::internal) naming op, got and expected when shapes do not fit, and
  // Error(Fault::backend) when the backend lacks the op.
  Tensor linear(const Tensor& x, const Weight& w, const Epilogue& epilogue = {});
  Tensor gated_linear(const Tensor& x, const Weight& w);
  Tensor layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift);
  Tensor rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift = {});
  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first_position = {});
  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   std::span<const int32_t> visible, int64_t segments = 1);
  Tensor embed(const Weight& table, std::span<const int32_t> ids, float scale);
  Tensor add_scaled(const Tensor& x, const Tensor& y, float scale);
  Tensor multiply(const Tensor& x, const Tensor& y);
  Tensor concat_rows(std::span<const Tensor> parts);
  Tensor slice_rows(const Tensor& x, int64_t first, int64_t last);
  void write_rows(Tensor& to, const Tensor& rows, int64_t first);

  // See Kernels::graph. What a replay did is counted as if its ops had run. During an audit, with a
  // tap or with a fallback, nothing is recorded or replayed.
  std::vector<Tensor> graph(const GraphKey& key, std::span<const Tensor> inputs,
                            const Kernels::Body& body);

  std::string_view backend() const { return kernels_.name(); }
  const Coverage& coverage() const { return coverage_; }
  void reset_coverage() { coverage_ = {}; }
  void audit(Audit* to);  // null: no audit

 private:
  struct Cost {
    int64_t flops = 0, bytes = 0;
    const Weight* weight = nullptr;
  };
  template <class Kernel, class Describe>
  auto run(const OpCall& call, Cost cost, const Describe& describe, const Kernel& kernel);
  bool on_host() const { return host_modules_ >> static_cast<int>(place_.module) & 1; }
  void record(Op op, const Cost& cost, bool native, int64_t ups, int64_t downs);

  Kernels& kernels_;
  Kernels* fallback_;
  Coverage coverage_;
  std::map<GraphKey, Coverage> replayed_;  // what a body counted when it last ran
  Place place_;
  Tap tap_;
  uint32_t host_modules_ = 0;  // one bit each
  Audit* audit_ = nullptr;
  bool backend_reports_ = false;
  std::vector<DeviceCall> calls_;  // of the running op
};

}  // namespace tendon
