// What a backend implements. Arguments are already checked by Ops; kernels trust them.
// Matrices are row-major [rows, columns]; a vector is [1, columns].
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/event.h"
#include "tendon/types.h"
#include "tensor/tensor.h"

namespace tendon {

// How a backend may store a weight.
enum class WeightKind : uint8_t {
  linear,  // a large product: packed, narrowed or quantised as the precision policy says
  gated,   // gate rows above up rows, one product each: for gated_linear
  small,   // small products around the transformer (actions, state, time): always f32
  table,   // token embeddings: rows are looked up, never multiplied
};

// A checkpoint matrix [outputs, inputs] on its way into a backend. Several parts are stacked by
// rows (q over k over v; gate over up).
struct WeightParts {
  std::string name;  // for messages: "vlm.layers.3.mlp.down"
  WeightKind kind = WeightKind::linear;
  std::vector<HostTensor> matrices;
  std::vector<float> bias;  // [outputs], or empty
  // Columns that belong together because attention splits them into heads of this width: the
  // outputs of a qkv weight, the inputs of the product after attention. 0: none. For backends that
  // pad every head.
  int64_t output_head_width = 0, input_head_width = 0;
  Module module = Module::pi0;  // whose it is, for backends that store modules differently
  // Instead of the matrices: what PreparedWeight::pieces() of the same backend once gave.
  std::vector<HostTensor> packed;
  int64_t outputs = 0, inputs = 0;  // with `packed` only
};

// A weight in the backend's own form.
class PreparedWeight {
 public:
  virtual ~PreparedWeight() = default;
  virtual int64_t bytes() const = 0;  // what one product reads of it
  // The backend's own form, to be stored: names without a prefix. Empty where it keeps none.
  virtual std::vector<HostTensor> pieces() const { return {}; }
};

struct Weight {
  std::string name;
  WeightKind kind = WeightKind::linear;
  int64_t outputs = 0, inputs = 0;
  bool has_bias = false;
  std::shared_ptr<const PreparedWeight> native, fallback;

  explicit operator bool() const { return native != nullptr; }
};

enum class Activation : uint8_t { none, gelu_tanh, silu };

// What follows a product: residual + gate ⊙ activation(x Wᵀ + b).
struct Epilogue {
  Activation activation = Activation::none;
  Tensor bias;      // [1, outputs], instead of the weight's own bias
  Tensor residual;  // [n, outputs], n divides the rows of x: row r uses residual row r mod n
  Tensor gate;      // [1, outputs]
};

struct Heads {
  int64_t query = 1, kv = 1, width = 1;  // query is a multiple of kv; width in columns
};

// Which keys the rows of an attention see. The rows of q, k and v fall into `segments` equal groups
// that do not see each other; row r of a group sees the first keys[r] of its group. One entry alone
// holds for every row.
struct Visibility {
  std::span<const int32_t> keys;
  int64_t segments = 1;
};

struct Qkv {
  Tensor q, k, v;  // [rows, query * width], [rows, kv * width], [rows, kv * width]
};

// Square pictures in bands of `patch` rows of pixels from top to bottom: in a band the rows of each
// channel below each other, [images * 3 * side, side].
struct Pictures {
  std::span<const float> bands;
  int64_t images = 0, side = 0, patch = 0;  // patch divides side
  bool of_bytes = false;                    // every value is 2 k / 255 - 1 of a byte k

  Shape patches() const { return {images * (side / patch) * (side / patch), 3 * patch * patch}; }
};

// Denoising times on their way into the model: sines, then cosines, of t · 2π / period_i, where
// period_i runs from min to max geometrically.
struct TimeEmbedding {
  std::span<const float> times;
  int64_t width = 0;  // even
  double min_period = 0, max_period = 0;
  TimeSequence sequence = TimeSequence::lerobot;  // decides the arithmetic: double, or float

  template <class Float>
  Float period(int64_t i) const {
    const int64_t last = width / 2 - 1;
    const Float fraction = last > 0 ? static_cast<Float>(i) / static_cast<Float>(last) : Float{0};
    const Float low = static_cast<Float>(min_period);
    return low * std::pow(static_cast<Float>(max_period) / low, fraction);
  }
};

// A call as far as a backend may say no to it. Of a product: rows of x and the weight's size; else
// rows and columns of x.
struct OpCall {
  Op op = Op::upload;
  int64_t rows = 0, inputs = 0, outputs = 0;
  int64_t head_width = 0;  // attention and qkv
};

// Names what a backend may record: the same graph of the same sizes does the same to its inputs.
// Graphs of equal sizes are parts of one kind of call.
struct GraphKey {
  std::string_view graph;  // static text: "prefill"
  std::array<int64_t, 4> sizes{};
  bool operator==(const GraphKey&) const = default;
  bool operator<(const GraphKey& k) const {
    return std::tie(graph, sizes) < std::tie(k.graph, k.sizes);
  }
};

// What a backend is, from its opening on.
struct BackendTraits {
  std::string_view name;          // static text: "cpu"
  std::string precision = "f32";  // of the large products
  std::string method = {};        // how it computes, in words; empty: as the formulas say
  bool simulated = false;         // its times say nothing about a device
  bool records = false;           // graph() ever does anything but call its body
  // Pictures are to be given to patches(): else whoever has them gathers and uploads.
  bool takes_pictures = false;
};

class Kernels {
 public:
  virtual ~Kernels() = default;
  const BackendTraits& traits() const { return traits_; }
  // Whether there is a kernel for this call; a call without one runs on the fallback or is an
  // error.
  virtual bool supports(const OpCall& /*call*/) const { return true; }
  virtual std::optional<DeviceMemory> device_memory() { return {}; }  // where the backend tells
  // From now on every call made of the device is appended to `to`; null: no more. False: this
  // backend makes one call per op, and appends nothing.
  virtual bool report_calls(std::vector<DeviceCall>* /*to*/) { return false; }
  // Returns when what was asked of the device is done.
  virtual void synchronize() {}

  // Runs `body` on `inputs`, or does again what it did under the same key, without calling it: then
  // its outputs lie where they lay. `body` depends on its inputs, on weights and on the key alone.
  // What it writes into caches must be among its outputs.
  using Body = std::function<std::vector<Tensor>(std::span<const Tensor> inputs)>;
  struct Replayed {
    std::vector<Tensor> outputs;
    bool again = false;  // body was not called
  };
  virtual Replayed graph(const GraphKey& /*key*/, std::span<const Tensor> inputs,
                         const Body& body) {
    return {body(inputs)};
  }

  // Ops outside of graphs follow that may leave tensors which outlast their call (masks, tables): a
  // backend whose recordings would write over them has to record anew.
  virtual void forget_graphs() {}

  virtual std::shared_ptr<const PreparedWeight> prepare(const WeightParts& parts) = 0;
  virtual Tensor upload(std::span<const float> values, const Shape& shape) = 0;
  virtual void download(const Tensor& x, std::span<float> to) = 0;

  // The two that may be made on the host, as they are here. A row of patches() is one patch, by
  // channel, row and column; patches follow each other from left to right, then down: p.patches().
  virtual Tensor patches(const Pictures& p);
  virtual Tensor embed_times(const TimeEmbedding& e);  // [times, width]

  virtual Tensor linear(const Tensor& x, const Weight& w, const Epilogue& epilogue) = 0;
  // gelu_tanh(x W_gᵀ) ⊙ (x W_uᵀ); the weight holds W_g over W_u.
  virtual Tensor gated_linear(const Tensor& x, const Weight& w) = 0;
  // (x − mean) / sqrt(biased variance + 1e-6) · scale + shift, per row.
  virtual Tensor layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) = 0;
  // x / sqrt(mean(x²) + 1e-6) · scale + shift, per row; shift may be empty.
  virtual Tensor rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) = 0;
  // One product, split into heads; rotary position embedding (half-split, θ = 10000) on q and k
  // of row r at first_position + r, or none.
  virtual Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
                  std::optional<int64_t> first_position) = 0;
  // softmax(q kᵀ / sqrt(width)) v over the keys that each row sees.
  virtual Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                           const Visibility& visible) = 0;
  virtual Tensor embed(const Weight& table, std::span<const int32_t> ids, float scale) = 0;
  virtual Tensor add_scaled(const Tensor& x, const Tensor& y, float scale) = 0;  // x + scale · y
  virtual Tensor multiply(const Tensor& x, const Tensor& y) = 0;
  virtual Tensor concat_rows(std::span<const Tensor> parts) = 0;
  virtual Tensor slice_rows(const Tensor& x, int64_t first, int64_t last) = 0;
  // Where `rows` come from qkv, `to` is a cache: a backend may forget what lies behind them.
  virtual void write_rows(Tensor& to, const Tensor& rows, int64_t first) = 0;

 protected:
  explicit Kernels(BackendTraits traits) : traits_(std::move(traits)) {}
  BackendTraits traits_;  // complete when the constructor of the backend ends
};

}  // namespace tendon
