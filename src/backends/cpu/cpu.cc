#include "backends/cpu/cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "backends/cpu/attention.h"
#include "backends/cpu/isa.h"
#include "backends/cpu/linear.h"
#include "ops/host_kernels.h"
#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon {
namespace {

using namespace tendon::cpu;

// Storage of one size, kept for the next tensor of that size.
class CpuBuffer final : public HostBuffer {
 public:
  CpuBuffer(int64_t count, std::vector<CpuBuffer*>& idle) : idle_(idle) {
    values = memory_.get(count);
  }

 protected:
  void retire() override { idle_.push_back(this); }

 private:
  Scratch<float> memory_;
  std::vector<CpuBuffer*>& idle_;
};

class BufferPool {
 public:
  ~BufferPool() {
    for (auto& [count, idle] : idle_)
      for (CpuBuffer* b : idle) delete b;
  }
  Tensor make(int64_t rows, int64_t columns) {
    std::vector<CpuBuffer*>& idle = idle_[rows * columns];
    if (idle.empty()) {
      idle.reserve(64);
      return {Shape{rows, columns}, new CpuBuffer(rows * columns, idle)};
    }
    CpuBuffer* b = idle.back();
    idle.pop_back();
    return {Shape{rows, columns}, b};
  }

 private:
  std::map<int64_t, std::vector<CpuBuffer*>> idle_;  // by elements
};

const PackedWeight& packed(const Weight& w) { return static_cast<const PackedWeight&>(*w.native); }

Form attention_form(Form products) { return products == Form::f32 ? Form::f32 : Form::bf16; }

TileActivation activation_of(Activation a) {
  return a == Activation::gelu_tanh ? TileActivation::gelu_tanh
         : a == Activation::silu    ? TileActivation::silu
                                    : TileActivation::none;
}

// Cosines and sines of the rotary embedding, by position.
class RotaryTable {
 public:
  void cover(int64_t positions, int64_t width) {
    const int64_t half = width / 2;
    if (width == width_ && positions <= positions_) return;
    positions_ = std::max<int64_t>(positions, 1024);
    width_ = width;
    float* c = cosine_.get(positions_ * half);
    float* s = sine_.get(positions_ * half);
    for (int64_t p = 0; p < positions_; ++p)
      for (int64_t j = 0; j < half; ++j, ++c, ++s) {
        const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(width);
        const double angle = static_cast<double>(p) * std::pow(10000.0, exponent);
        *c = static_cast<float>(std::cos(angle));
        *s = static_cast<float>(std::sin(angle));
      }
  }
  const float* cosine(int64_t position) const { return cosine_.peek() + position * width_ / 2; }
  const float* sine(int64_t position) const { return sine_.peek() + position * width_ / 2; }

 private:
  int64_t positions_ = 0, width_ = 0;
  Scratch<float> cosine_, sine_;
};

class CpuKernels final : public HostKernels {
 public:
  explicit CpuKernels(const CpuOptions& options)
      : HostKernels({.name = "cpu",
                     .precision = std::string(tendon::name(options.precision)),
                     .method = describe_cpu(options),
                     .takes_packed = true}),
        form_(options.precision),
        isa_(isa_for(options.isa, form_)),
        pool_(options.threads > 0 ? options.threads : hardware_threads()),
        products_(isa_, pool_, macs_per_ns(isa_, form_)),
        attention_(make_attention(options, attention_form(form_))) {}

  std::shared_ptr<const PreparedWeight> prepare(const WeightParts& parts) override {
    return pack_weight(parts, form_, pool_);
  }

  Tensor linear(const Tensor& x, const Weight& w, const Epilogue& e) override {
    Tensor y = make(x.rows(), w.outputs);
    TileEpilogue finish{
        .y = row(y, 0), .columns = w.outputs, .activation = activation_of(e.activation)};
    if (e.bias) finish.bias = row(e.bias, 0);
    if (!e.bias && w.has_bias) finish.bias = packed(w).bias.data();
    if (e.gate) finish.gate = row(e.gate, 0);
    if (e.residual) finish.residual = row(e.residual, 0);
    if (e.residual) finish.residual_rows = e.residual.rows();
    products_.product(row(x, 0), x.rows(), packed(w), finish);
    return y;
  }

  Tensor gated_linear(const Tensor& x, const Weight& w) override {
    Tensor y = make(x.rows(), w.outputs / 2);
    products_.product(
        row(x, 0), x.rows(), packed(w),
        {.y = row(y, 0), .columns = w.outputs / 2, .activation = TileActivation::gated_gelu});
    return y;
  }

  Tensor layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    Tensor y = make(x.rows(), x.columns());
    by_rows(x.rows(), x.columns(), [&](int64_t r) {
      isa_.layer_norm(row(x, r), x.columns(), row(scale, 0), row(shift, 0), row(y, r));
    });
    return y;
  }

  Tensor rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    Tensor y = make(x.rows(), x.columns());
    const float* shifts = shift ? row(shift, 0) : nullptr;
    by_rows(x.rows(), x.columns(), [&](int64_t r) {
      isa_.rms_norm(row(x, r), x.columns(), row(scale, 0), shifts, row(y, r));
    });
    return y;
  }

  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first_position) override {
    const int64_t q = heads.query * heads.width, kv = heads.kv * heads.width;
    Qkv out{make(x.rows(), q), make(x.rows(), kv), make(x.rows(), kv)};
    split_product(x, w, {row(out.q, 0), row(out.k, 0), row(out.v, 0)}, q, kv);
    if (!first_position) return out;
    rotary_.cover(*first_position + x.rows(), heads.width);
    by_rows(x.rows(), q + kv, [&](int64_t r) {
      const float* cosine = rotary_.cosine(*first_position + r);
      const float* sine = rotary_.sine(*first_position + r);
      for (int64_t at = 0; at < q; at += heads.width)
        isa_.rotate(row(out.q, r) + at, heads.width, cosine, sine);
      for (int64_t at = 0; at < kv; at += heads.width)
        isa_.rotate(row(out.k, r) + at, heads.width, cosine, sine);
    });
    return out;
  }

  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   const Visibility& visible) override {
    Tensor out = make(q.rows(), q.columns());
    attention_.run({row(q, 0), row(k, 0), row(v, 0), row(out, 0), q.rows() / visible.segments,
                    k.rows() / visible.segments, heads, visible});
    return out;
  }

  Tensor embed(const Weight& table, std::span<const int32_t> ids, float scale) override {
    Tensor y = make(std::ssize(ids), table.inputs);
    for (int64_t r = 0; r < y.rows(); ++r) {
      const int64_t id = ids[static_cast<size_t>(r)];
      const std::span<float> to(row(y, r), static_cast<size_t>(table.inputs));
      convert_row_to_f32(packed(table).table, id, to);
      isa_.scale_row(row(y, r), table.inputs, scale);
    }
    return y;
  }

 private:
  Attention make_attention(const CpuOptions& options, Form form) {
    const SimdKernels& isa = isa_for(options.isa, form);
    return {isa, pool_, form, macs_per_ns(isa, form)};
  }

  Tensor make(int64_t rows, int64_t columns) override { return buffers_.make(rows, columns); }

  // q | k | v of each row into matrices of their own: at once where they begin with a panel.
  void split_product(const Tensor& x, const Weight& w, std::array<float*, 3> to, int64_t q,
                     int64_t kv) {
    const std::array<Products::Part, 3> parts{{{0, to[0], q}, {q, to[1], kv}, {q + kv, to[2], kv}}};
    if (q % kPanel == 0 && kv % kPanel == 0) {
      TileEpilogue finish{.columns = w.outputs};
      if (w.has_bias) finish.bias = packed(w).bias.data();
      products_.product(row(x, 0), x.rows(), packed(w), finish, parts);
      return;
    }
    const Tensor all = linear(x, w, {});
    for (int64_t r = 0; r < x.rows(); ++r)
      for (const Products::Part& part : parts)
        std::copy_n(row(all, r) + part.first, part.columns, part.y + r * part.columns);
  }

  // Calls body(row), sixteen rows per task.
  template <class Body>
  void by_rows(int64_t rows, int64_t columns, const Body& body) {
    constexpr int64_t kRows = 16;
    pool_.run((rows + kRows - 1) / kRows, rows * columns / ThreadPool::kValuesPerNs,
              [&](int64_t task, int) {
                for (int64_t r = task * kRows; r < std::min((task + 1) * kRows, rows); ++r) body(r);
              });
  }

  Form form_;
  const SimdKernels& isa_;
  ThreadPool pool_;
  BufferPool buffers_;
  Products products_;
  Attention attention_;
  RotaryTable rotary_;
};

constexpr std::array<std::string_view, 3> kPrecisions = {"f32", "bf16", "int8"};

}  // namespace

std::string_view name(Precision precision) { return kPrecisions[static_cast<size_t>(precision)]; }

Precision precision_named(const std::string& name) {
  for (size_t i = 0; i < kPrecisions.size(); ++i)
    if (name == kPrecisions[i]) return static_cast<Precision>(i);
  fail(Fault::usage, "unknown precision '{}'; there are: f32, bf16, int8", name);
}

std::unique_ptr<Kernels> make_cpu_backend(const CpuOptions& options) {
  return std::make_unique<CpuKernels>(options);
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const SimdKernels* isa : available_isas()) names.emplace_back(isa->name);
  return names;
}

std::string describe_cpu(const CpuOptions& options) {
  const Form form = options.precision;
  const SimdKernels& isa = isa_for(options.isa, form);
  const SimdKernels& attention = isa_for(options.isa, attention_form(form));
  std::string text = fmt::format("{}, {} products", isa.name, name(options.precision));
  if (form == Form::int8) text += fmt::format(" ({})", isa.int8_method);
  if (&attention != &isa) text += fmt::format(", attention by {}", attention.name);
  for (const IsaSpeed& s : isa_speeds(form))
    if (!s.right) text += fmt::format(", {} gives wrong products here", s.isa->name);
  return text;
}

std::string compare_cpu_isas(Precision precision) {
  const std::vector<IsaSpeed>& speeds = isa_speeds(precision);
  const SimdKernels& taken = fastest(speeds);
  std::string text;
  for (const IsaSpeed& s : speeds)
    text += fmt::format("{}{} {:.0f}{}", text.empty() ? "" : ", ", s.isa->name, s.gflops,
                        !s.right          ? " (WRONG, not used)"
                        : s.isa == &taken ? " (taken)"
                                          : "");
  return text;
}

}  // namespace tendon
