#include "backends/cuda/cuda.h"

#include <algorithm>
#include <list>
#include <map>

#include "backends/cuda/kernels.h"
#include "backends/cuda/products.h"
#include "tensor/bf16.h"
#include "tensor/check.h"

namespace tendon {
namespace cuda {
namespace {

constexpr size_t kRecordingsMax = 16;  // two per kind of call

struct CudaWeight final : PreparedWeight {
  CudaWeight(int64_t count, bool in_bf16)
      : bf16(in_bf16), size(count * (in_bf16 ? 2 : 4)), matrix(make_array(size)) {}
  int64_t bytes() const override { return size; }

  bool bf16;
  int64_t size;
  DeviceArray matrix, bias;  // [outputs, inputs], [outputs] or empty
};

const CudaWeight& weight(const Weight& w) { return static_cast<const CudaWeight&>(*w.native); }

const float* bias_of(const Weight& w) { return static_cast<const float*>(weight(w).bias.get()); }

// What a body did, as a graph. `kept`: what it touches and did not make, so that none of it moves.
struct Recording {
  GraphKey key;
  std::shared_ptr<Pool> pool = std::make_shared<Pool>();
  std::vector<Tensor> inputs, outputs;
  std::map<const Buffer*, Tensor> kept;
  cudaGraphExec_t graph = nullptr;

  explicit Recording(const GraphKey& the_key) : key(the_key) {}
  ~Recording() {
    if (graph) cudaGraphExecDestroy(graph);
  }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
};

class CudaKernels final : public Kernels {
 public:
  explicit CudaKernels(const CudaOptions& options)
      : Kernels({.name = "cuda",
                 .precision = options.precision == CudaPrecision::bf16 ? "bf16" : "f32",
                 .records = options.graphs}),
        bf16_(options.precision == CudaPrecision::bf16),
        device_(options.device),
        products_(device_, options.blas_library) {
    traits_.method = device_.description();
  }

  bool supports(const OpCall& call) const override {
    return call.op != Op::attention || call.head_width <= kHeadWidthMax;
  }
  void synchronize() override {
    if (!recording_) device_.wait();
  }

  std::shared_ptr<const PreparedWeight> prepare(const WeightParts& parts) override {
    device_.use();
    auto prepared = std::make_shared<CudaWeight>(parts.outputs * parts.inputs,
                                                 bf16_ && parts.kind != WeightKind::small);
    int64_t values = 0;
    for (const HostTensor& m : parts.matrices) {
      fill(*prepared, m, values);
      values += m.shape.count();
    }
    if (!parts.bias.empty()) {
      const int64_t bytes = 4 * std::ssize(parts.bias);
      prepared->bias = make_array(bytes);
      device_.copy_in(parts.bias.data(), prepared->bias.get(), bytes);
    }
    device_.wait();
    return prepared;
  }

  Tensor upload(std::span<const float> values, const Shape& shape) override {
    ensure(!recording_, Fault::internal, "[cuda] a recorded body uploads {}", to_string(shape));
    Tensor x = make(shape[0], shape[1]);
    device_.copy_in(values.data(), data(x), 4 * std::ssize(values));
    return x;
  }

  void download(const Tensor& x, std::span<float> to) override {
    device_.copy_out(data(x), to.data(), 4 * std::ssize(to));
  }

  Tensor linear(const Tensor& x, const Weight& w, const Epilogue& e) override {
    const int64_t rows = x.rows();
    Tensor y = make(rows, w.outputs);
    const float* bias = e.bias ? in(e.bias) : bias_of(w);
    const bool gelu = e.activation == Activation::gelu_tanh;
    Product p{rows, w.outputs, w.inputs, weight(w).bf16, bias != nullptr};
    // What the library does in the same pass, where it has a kernel for that. It adds a residual
    // before its activation and knows no gate, so that not all of them combine.
    if (!e.gate && e.activation == Activation::none)
      p.residual = e.residual && e.residual.rows() == rows;
    else
      p.gelu = gelu && !e.gate && !e.residual;
    const bool all =
        (p.gelu || e.activation == Activation::none) && !e.gate && (p.residual || !e.residual);
    if (all && products_.has(p)) {
      multiply_into(y, x, w, p, {.bias = bias, .residual = in(e.residual)});
      return y;
    }
    // The bare product, then one more pass over y.
    multiply_into(y, x, w, {rows, w.outputs, w.inputs, weight(w).bf16}, {});
    check(finish(device_.stream(), {.y = data(y),
                                    .bias = bias,
                                    .gate = in(e.gate),
                                    .residual = in(e.residual),
                                    .rows = rows,
                                    .columns = w.outputs,
                                    .residual_rows = e.residual ? e.residual.rows() : 1,
                                    .activation = static_cast<int>(e.activation)}),
          "linear");
    return y;
  }

  Tensor gated_linear(const Tensor& x, const Weight& w) override {
    const Tensor both = linear(x, w, {});  // [rows, gate | up]
    Tensor y = make(x.rows(), w.outputs / 2);
    check(gate_up(device_.stream(), data(both), data(y), y.rows(), y.columns()), "gated_linear");
    return y;
  }

  Tensor layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    return normalize(x, scale, shift, false);
  }

  Tensor rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    return normalize(x, scale, shift, true);
  }

  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first_position) override {
    const Tensor all = linear(x, w, {});  // [rows, q | k | v]
    const int64_t rows = x.rows();
    Qkv out{make(rows, heads.query * heads.width), make(rows, heads.kv * heads.width),
            make(rows, heads.kv * heads.width)};
    check(split_heads(device_.stream(), {.all = data(all),
                                         .q = data(out.q),
                                         .k = data(out.k),
                                         .v = data(out.v),
                                         .rows = rows,
                                         .query = heads.query,
                                         .kv = heads.kv,
                                         .width = heads.width,
                                         .first_position = first_position.value_or(-1)}),
          "qkv");
    return out;
  }

  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   const Visibility& visible) override {
    Tensor out = make(q.rows(), q.columns());
    const auto& [seen, segments] = visible;
    Attention a{.q = in(q),
                .k = in(k),
                .v = in(v),
                .out = data(out),
                .segments = segments,
                .rows = q.rows() / segments,
                .keys = k.rows() / segments,
                .query = heads.query,
                .kv = heads.kv,
                .width = heads.width,
                .all_see = seen[0]};
    // One number for all rows travels with the launch; many are an upload, which no recording has.
    Tensor each;
    if (seen.size() > 1) {
      each = upload_integers(seen);
      a.each_sees = reinterpret_cast<const int32_t*>(data(each));
    }
    check(cuda::attention(device_.stream(), a), "attention");
    return out;
  }

  Tensor embed(const Weight& table, std::span<const int32_t> ids, float scale) override {
    const Tensor rows = upload_integers(ids);
    const auto* id = reinterpret_cast<const int32_t*>(data(rows));
    Tensor y = make(std::ssize(ids), table.inputs);
    check(cuda::embed(device_.stream(), {.table = weight(table).matrix.get(),
                                         .bf16 = weight(table).bf16,
                                         .ids = id,
                                         .scale = scale,
                                         .y = data(y),
                                         .rows = y.rows(),
                                         .columns = y.columns()}),
          "embed");
    return y;
  }

  Tensor add_scaled(const Tensor& x, const Tensor& y, float scale) override {
    Tensor out = make(x.rows(), x.columns());
    check(cuda::add_scaled(device_.stream(), {in(x), in(y), scale, data(out), x.shape().count()}),
          "add_scaled");
    return out;
  }

  Tensor multiply(const Tensor& x, const Tensor& y) override {
    Tensor out = make(x.rows(), x.columns());
    check(cuda::multiply(device_.stream(), in(x), in(y), data(out), x.shape().count()), "multiply");
    return out;
  }

  Tensor concat_rows(std::span<const Tensor> parts) override {
    return concat_by_writing(parts, [&](int64_t r, int64_t c) { return make(r, c); });
  }

  Tensor slice_rows(const Tensor& x, int64_t first, int64_t last) override {
    Tensor out = make(last - first, x.columns());
    device_.copy(in(x) + first * x.columns(), data(out), 4 * out.shape().count());
    return out;
  }

  void write_rows(Tensor& to, const Tensor& rows, int64_t first) override {
    device_.copy(in(rows), in(to) + first * to.columns(), 4 * rows.shape().count());
  }

  // The first call under a key runs as it is, so that nothing is chosen or loaded while recording;
  // the second is recorded and its graph run; from the third on the graph alone is run.
  Replayed graph(const GraphKey& key, std::span<const Tensor> inputs, const Body& body) override {
    const auto known = std::ranges::find(recordings_, key, &Recording::key);
    if (known == recordings_.end()) {
      recordings_.emplace_front(key);
      if (recordings_.size() > kRecordingsMax) {
        device_.wait();  // it may still be running
        recordings_.pop_back();
      }
      return {body(inputs)};
    }
    recordings_.splice(recordings_.begin(), recordings_, known);
    Recording& r = recordings_.front();
    const bool again = r.graph != nullptr;
    if (!again) {
      r.inputs.clear();
      r.kept.clear();
      for (const Tensor& x : inputs)
        r.inputs.push_back(x ? Tensor(x.shape(), new CudaBuffer(r.pool, x.shape().count()))
                             : Tensor());
    }
    for (size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i])
        device_.copy(data(inputs[i]), data(r.inputs[i]), 4 * inputs[i].shape().count());
    if (!again) {
      Capture capture(*this, r);
      r.outputs = body(r.inputs);
      r.graph = capture.graph();
    }
    check(cudaGraphLaunch(r.graph, device_.stream()), "a recorded call");
    return {r.outputs, again};
  }

  // forget_graphs() does nothing: what calls outside of graphs leave lies in another pool.
  void end_graphs() override { recordings_.clear(); }

 private:
  Tensor make(int64_t rows, int64_t columns) {
    device_.use();
    const std::shared_ptr<Pool>& pool = recording_ ? recording_->pool : pool_;
    return {Shape{rows, columns}, new CudaBuffer(pool, rows * columns)};
  }

  // What a recorded body reads or writes stays where it is as long as the graph. What it made
  // itself lies in the recording's own pool and may be used again within the graph.
  float* in(const Tensor& x) {
    if (recording_ && x && !from(x, *recording_->pool)) recording_->kept.emplace(x.buffer(), x);
    return data(x);
  }

  // While it lives, what is asked of the stream goes into a graph.
  class Capture {
   public:
    Capture(CudaKernels& kernels, Recording& into) : kernels_(kernels) {
      // Relaxed: the pool may ask for memory meanwhile.
      check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed), "recording");
      kernels_.recording_ = &into;
    }
    ~Capture() {
      if (kernels_.recording_) stop();
      if (graph_) cudaGraphDestroy(graph_);
    }
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;

    cudaGraphExec_t graph() {
      check(stop(), "recording");
      cudaGraphExec_t made = nullptr;
      check(cudaGraphInstantiate(&made, graph_, 0), "making a graph");
      return made;
    }

   private:
    cudaStream_t stream() const { return kernels_.device_.stream(); }
    cudaError_t stop() {
      kernels_.recording_ = nullptr;
      return cudaStreamEndCapture(stream(), &graph_);
    }

    CudaKernels& kernels_;
    cudaGraph_t graph_ = nullptr;
  };

  // Converts and copies some rows' worth of values at a time, 4 M of them, so that the host never
  // holds a whole weight once more. What has the device's type already is copied from the file.
  void fill(const CudaWeight& to, const HostTensor& from, int64_t first) {
    const int64_t columns = from.shape.count() / from.shape[0];
    const int64_t size = to.bf16 ? 2 : 4;
    const int64_t step = std::max<int64_t>(1, (1 << 22) / columns);
    auto* at = static_cast<std::byte*>(to.matrix.get()) + first * size;
    std::vector<float> wide;
    std::vector<uint16_t> rounded;
    for (int64_t r = 0; r < from.shape[0]; r += step) {
      const HostTensor some = from.rows(r, std::min(r + step, from.shape[0]));
      const int64_t count = some.shape.count();
      const void* values = some.bytes.data();
      if (some.dtype != (to.bf16 ? DType::bf16 : DType::f32)) {
        wide.resize(static_cast<size_t>(count));
        convert_to_f32(some, wide);
        values = wide.data();
        if (to.bf16) {
          rounded.resize(wide.size());
          std::ranges::transform(wide, rounded.begin(), to_bf16);
          values = rounded.data();
        }
      }
      device_.copy_in(values, at + r * columns * size, count * size);
      device_.wait();
      forget_pages(some);
    }
  }

  // Four bytes each, as a float has: they lie in the pool's floats.
  Tensor upload_integers(std::span<const int32_t> values) {
    ensure(!recording_, Fault::internal, "[cuda] a recorded body uploads {} integers",
           values.size());
    Tensor x = make(1, std::ssize(values));
    device_.copy_in(values.data(), data(x), 4 * std::ssize(values));
    return x;
  }

  void multiply_into(Tensor& y, const Tensor& x, const Weight& w, const Product& p,
                     Operands operands) {
    Tensor rounded;
    operands.x = in(x);
    if (p.bf16) {
      rounded = make(x.rows(), (x.columns() + 1) / 2);  // two values in each float's place
      auto* to = reinterpret_cast<Bf16*>(data(rounded));
      check(narrow(device_.stream(), data(x), to, x.shape().count()), "rounding to bf16");
      operands.x = to;
    }
    operands.weight = weight(w).matrix.get();
    operands.y = data(y);
    products_.run(p, operands);
  }

  Tensor normalize(const Tensor& x, const Tensor& scale, const Tensor& shift, bool rms) {
    Tensor y = make(x.rows(), x.columns());
    check(norm(device_.stream(), {.x = in(x),
                                  .scale = in(scale),
                                  .shift = in(shift),
                                  .y = data(y),
                                  .rows = x.rows(),
                                  .columns = x.columns(),
                                  .rms = rms}),
          rms ? "rms_norm" : "layer_norm");
    return y;
  }

  bool bf16_;
  Device device_;
  Products products_;
  std::shared_ptr<Pool> pool_ = std::make_shared<Pool>();
  std::list<Recording> recordings_;  // the last used first
  Recording* recording_ = nullptr;
};

}  // namespace
}  // namespace cuda

std::unique_ptr<Kernels> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<cuda::CudaKernels>(options);
}

}  // namespace tendon
