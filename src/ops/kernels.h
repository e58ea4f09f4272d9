// What a backend implements. Arguments are already checked by Ops; kernels trust them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/arguments.h"

namespace tendon {

// What a backend is, from its opening on.
struct BackendTraits {
  std::string_view name;          // static text: "cpu"
  std::string precision = "f32";  // of the large products
  std::string method = {};        // how it computes, in words; empty: as the formulas say
  bool simulated = false;         // its times say nothing about a device
  bool records = false;           // graph() ever does anything but call its body
  // Pictures are to be given to patches(): else whoever has them gathers and uploads.
  bool takes_pictures = false;
  bool takes_packed = false;  // its weights can be stored and taken back in its own form
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
  // The Ops whose calls were recorded ends: it alone knows what is in the recordings.
  virtual void end_graphs() { forget_graphs(); }

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
  // concat_rows() by write_rows(), for matrices in one piece, which `make(rows, columns)` gives.
  template <class Make>
  Tensor concat_by_writing(std::span<const Tensor> parts, const Make& make) {
    int64_t rows = 0;
    for (const Tensor& part : parts) rows += part.rows();
    Tensor out = make(rows, parts[0].columns());
    rows = 0;
    for (const Tensor& part : parts) {
      write_rows(out, part, rows);
      rows += part.rows();
    }
    return out;
  }

  BackendTraits traits_;  // complete when the constructor of the backend ends
};

}  // namespace tendon
