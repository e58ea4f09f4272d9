// What a model calls: checks every shape, counts and times every call, and owns the one fallback
// rule. An op that the backend lacks is an error, unless a fallback backend was given; then the op
// runs there and is counted as a fallback.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ops/audit.h"
#include "ops/kernels.h"

namespace tendon {

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
      : kernels_(kernels), fallback_(fallback) {
    reports_ = kernels_.report_calls(&calls_);
  }
  ~Ops() {
    kernels_.report_calls(nullptr);
    kernels_.end_graphs();
  }
  Ops(const Ops&) = delete;
  Ops& operator=(const Ops&) = delete;

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
  // x, or what the tap puts in its place. An empty name: that of the layer or module itself.
  Tensor tap(std::string_view name, const Tensor& x);
  // What a fused linear or qkv leaves out of sight, computed once more for the tap alone: the
  // product before residual and gate; queries, keys and values ("q", "k", "v") before the rotary
  // embedding.
  Tensor linear(std::string_view name, const Tensor& x, const Weight& w, const Epilogue& epilogue);
  Qkv qkv_tapped(const Tensor& x, const Weight& w, const Heads& heads, int64_t first_position);

  // During its life `poll` is called before every op; what that throws comes out of the op.
  class Polled {
   public:
    Polled(Ops& ops, std::function<void()> poll) : ops_(ops) { ops_.poll_ = std::move(poll); }
    ~Polled() { ops_.poll_ = {}; }
    Polled(const Polled&) = delete;
    Polled& operator=(const Polled&) = delete;

   private:
    Ops& ops_;
  };

  // These modules run on the fallback, whatever the backend has. Before any weight is prepared;
  // Error(Fault::usage) without a fallback.
  void keep_on_host(std::span<const Module> modules);

  Weight prepare(WeightParts parts);
  Tensor upload(std::span<const float> values, const Shape& shape);
  std::vector<float> download(const Tensor& x);
  void download(const Tensor& x, std::span<float> to);

  bool takes_pictures() const { return kernels_.traits().takes_pictures; }  // see Kernels

  // The kernels' operations; their meaning and shapes are in kernels.h. Each throws
  // Error(Fault::internal) naming op, got and expected when shapes do not fit, and
  // Error(Fault::backend) when the backend lacks the op.
  Tensor patches(const Pictures& p);
  Tensor embed_times(const TimeEmbedding& e);
  Tensor linear(const Tensor& x, const Weight& w, const Epilogue& epilogue = {});
  Tensor gated_linear(const Tensor& x, const Weight& w);
  Tensor layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift);
  Tensor rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift = {});
  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first_position = {});
  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   const Visibility& visible);
  Tensor embed(const Weight& table, std::span<const int32_t> ids, float scale);
  Tensor add_scaled(const Tensor& x, const Tensor& y, float scale);
  Tensor multiply(const Tensor& x, const Tensor& y);
  Tensor concat_rows(std::span<const Tensor> parts);
  Tensor slice_rows(const Tensor& x, int64_t first, int64_t last);
  void write_rows(Tensor& to, const Tensor& rows, int64_t first);

  // See Kernels::graph. The events of a replay are those of the run that was recorded. With a tap
  // or a fallback nothing is recorded or replayed.
  std::vector<Tensor> graph(const GraphKey& key, std::span<const Tensor> inputs,
                            const Kernels::Body& body);

  void forget_graphs() { kernels_.forget_graphs(); }  // see Kernels

  std::string_view backend() const { return kernels_.traits().name; }
  const Coverage& coverage() const { return coverage_; }
  // From now on `observer` is told of every op after it ran; {}: nobody is. Each op is waited for
  // meanwhile, so that its time is its own.
  void observe(OpObserver observer) { observer_ = std::move(observer); }
  // Returns when what was asked of the backend is done.
  void synchronize() { kernels_.synchronize(); }

 private:
  struct Cost {
    int64_t flops = 0, bytes = 0;
    const Weight* weight = nullptr;
  };
  template <class Kernel, class Describe>
  auto run(const OpCall& call, Cost cost, const Kernel& kernel, const Describe& describe);
  template <class Kernel>
  auto run(const OpCall& call, Cost cost, const Kernel& kernel);  // described by its sizes
  bool on_host() const { return host_modules_ >> static_cast<int>(place_.module) & 1; }
  void tell(OpEvent event);  // of what ran now
  void count(const OpEvent& event);

  // What a body did when it last ran, to be told again when it is replayed.
  struct Recorded {
    std::vector<OpEvent> events;
    int64_t used = 0;  // when, counted in graphs
  };

  Kernels& kernels_;
  Kernels* fallback_;
  Coverage coverage_;
  OpObserver observer_;
  std::map<GraphKey, Recorded> recorded_;
  std::vector<OpEvent>* recording_ = nullptr;
  int64_t graphs_ = 0;
  Place place_;
  Tap tap_;
  std::function<void()> poll_;
  uint32_t host_modules_ = 0;      // one bit each
  bool reports_ = false;           // the backend makes any number of calls per op
  std::vector<DeviceCall> calls_;  // of the running op, where the backend makes several
};

}  // namespace tendon
