// What ops and graphs take besides tensors. Matrices are row-major [rows, columns]; a vector is
// [1, columns].
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
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
  int64_t outputs = 0, inputs = 0;  // told with `packed`; else Ops has them from the matrices

  // Row `r` of the stacked matrices, copied to `to`.
  void read_row(int64_t r, std::span<float> to) const {
    for (const HostTensor& m : matrices) {
      if (r < m.shape[0]) return convert_row_to_f32(m, r, to);
      r -= m.shape[0];
    }
  }
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

}  // namespace tendon
