#include "backends/ttnn/ttnn.h"

#include <cmath>

#include "backends/ttnn/constants.h"
#include "backends/ttnn/device.h"
#include "backends/ttnn/layouts.h"
#include "backends/ttnn/plan.h"
#include "tensor/check.h"

namespace tendon {
namespace tt {
namespace {

constexpr float kNormEps = 1e-6f;

class TtnnKernels final : public Kernels {
 public:
  TtnnKernels(std::unique_ptr<TtApi> api, const Use& use)
      : Kernels({.name = "ttnn",
                 .precision = use.precision,
                 .method =
                     fmt::format("{}, {}{}", api->caps().description, use.precision, in_words(use)),
                 .simulated = api->caps().simulated,
                 .records = api->caps().fast_dispatch,
                 .takes_pictures = use.makes_patches}),
        use_(use),
        device_(std::move(api), use.placement),
        constants_(device_) {}

  std::optional<DeviceMemory> device_memory() override { return device_.memory(); }
  bool report_calls(std::vector<DeviceCall>* to) override {
    device_.report_calls(to);
    return true;
  }

  // Compile run, capture, replays. A run that is no replay may leave new tensors (masks, tables)
  // where recorded intermediates used to lie: it forgets what was recorded before. Calls of another
  // kind may also have driven out masks that a capture would then have to upload, which it must
  // not: their keys begin anew.
  Replayed graph(const GraphKey& key, std::span<const Tensor> inputs, const Body& body) override {
    if (!recordings_.empty() && key.sizes != recordings_.begin()->first.sizes) forget_graphs();
    Recording& r = recordings_[key];
    if (!r.compiled) {
      forget_traces();
      r.compiled = true;
      return {body(inputs)};
    }
    if (r.trace == 0) {
      r.inputs.assign(inputs.begin(), inputs.end());
      r.trace = device_.capture([&] { r.outputs = body(inputs); });
      return {r.outputs};
    }
    for (size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i] && held(inputs[i]) != held(r.inputs[i]))
        device_.copy(held(inputs[i]), held(r.inputs[i]));
    device_.replay(r.trace);
    return {r.outputs, true};
  }

  void forget_graphs() override {
    forget_traces();
    recordings_.clear();
  }

  ~TtnnKernels() override { forget_traces(); }

  std::shared_ptr<const PreparedWeight> prepare(const WeightParts& parts) override {
    return prepare_weight(device_, parts, use_.formats[static_cast<size_t>(parts.module)]);
  }

  Tensor upload(std::span<const float> values, const Shape& shape) override {
    const int64_t rows = shape[0], columns = shape[1];
    const Spec spec{.dims = {1, 1, rows == 1 ? 1 : round_up(rows), round_up(columns)}};
    std::vector<float> wide(static_cast<size_t>(count(spec.dims)));
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(values.begin() + r * columns, columns, wide.begin() + r * spec.dims[3]);
    return make_tensor(shape, device_.upload(spec, wide));
  }

  Tensor patches(const Pictures& p) override {
    if (!use_.makes_patches) return Kernels::patches(p);
    const int64_t bands = p.images * p.side / p.patch, across = p.side / p.patch;
    const TensorRef cut = device_.reshape(pixels(p), {bands, 3 * p.patch, across, p.patch});
    const TensorRef apart = device_.run({.call = Call::permute}, {cut});
    const Shape shape = p.patches();
    const TensorRef rows = device_.reshape(apart, {1, 1, shape[0], shape[1]});
    return make_tensor(shape, device_.pad(rows, {1, 1, shape[0] == 1 ? 1 : round_up(shape[0]),
                                                 round_up(shape[1])}));
  }

  // Angles reach 2 π / 0.004 = 1571: in bf16 a period of the shortest wave would be lost.
  Tensor embed_times(const TimeEmbedding& e) override {
    if (!use_.makes_times) return Kernels::embed_times(e);
    const int64_t rows = e.times.size() == 1 ? 1 : round_up(std::ssize(e.times));
    std::vector<float> times(static_cast<size_t>(rows));
    std::ranges::copy(e.times, times.begin());
    const TensorRef angles =
        device_.run({.call = Call::multiply},
                    {constants_.frequencies(e, rows),
                     device_.upload({.dims = {1, 1, rows, 1}, .format = Format::f32}, times)});
    const std::array both{device_.run({.call = Call::sin}, {angles}),
                          device_.run({.call = Call::cos}, {angles})};
    const TensorRef made = device_.typecast(device_.concat(both, 3), Format::bf16);
    return make_tensor({std::ssize(e.times), e.width},
                       device_.pad(made, {1, 1, rows, round_up(e.width)}));
  }

  void download(const Tensor& x, std::span<float> to) override {
    const TensorRef all = joined(buffer(x).pieces);
    std::ranges::copy(gather(x, all, device_.download(all)), to.begin());
  }

  Tensor linear(const Tensor& x, const Weight& w, const Epilogue& e) override {
    const TtWeight& native = weight(w);
    ensure(native.outputs.width == 0, Fault::internal, "[ttnn] {} makes heads: use qkv", w.name);
    const TensorRef in = native.inputs.width ? as_spread(x, native.inputs) : as_rows(x);
    const TensorRef bias = e.bias ? operand_row(e.bias) : native.bias;
    TensorRef y = product(in, native.matrices[0], bias, e.activation, Format::bf16);
    if (e.gate) y = device_.run({.call = Call::multiply}, {y, operand_row(e.gate)});
    if (e.residual) y = add_residual(y, e.residual, x.rows());
    return make_tensor({x.rows(), w.outputs}, y);
  }

  Tensor gated_linear(const Tensor& x, const Weight& w) override {
    const std::vector<TensorRef>& halves = weight(w).matrices;
    const TensorRef in = as_rows(x);
    const TensorRef gate = product(in, halves[0], nullptr, Activation::gelu_tanh, Format::bf16);
    const TensorRef up = product(in, halves[1], nullptr, Activation::none, Format::bf16);
    return make_tensor({x.rows(), w.outputs / 2},
                       device_.run({.call = Call::multiply}, {gate, up}));
  }

  Tensor layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    return make_tensor(x.shape(), norm(Call::layer_norm, x, scale, shift));
  }

  Tensor rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) override {
    TensorRef y = norm(Call::rms_norm, x, scale, {});
    if (shift) y = device_.run({.call = Call::add}, {y, operand_row(shift)});
    return make_tensor(x.shape(), y);
  }

  Qkv qkv(const Tensor& x, const Weight& w, const Heads& heads,
          std::optional<int64_t> first_position) override {
    const TtWeight& native = weight(w);
    const HeadColumns columns = native.outputs;
    ensure(columns.width == heads.width, Fault::internal,
           "[ttnn] {} was prepared for heads of {}, not {}", w.name, columns.width, heads.width);
    TensorRef all = product(as_rows(x), native.matrices[0], native.bias, Activation::none,
                            native.matrices[0]->spec.format);
    if (all->dims()[2] == 1) all = device_.pad(all, {1, 1, kTile, all->dims()[3]});
    const int64_t width = columns.padded();
    std::vector<TensorRef> parts(3);  // q, k, v; q is empty where the weight makes none
    if (heads.query > 0)
      parts = device_.run_all(
          {.call = Call::create_qkv_heads, .heads = heads.query, .kv_heads = heads.kv},
          std::span(&all, 1));
    else
      for (size_t i = 1; i < 3; ++i)
        parts[i] =
            device_.heads(all, static_cast<int64_t>(i - 1) * heads.kv * width, heads.kv, width);
    if (first_position) {
      const auto [cosine, sine] = constants_.rotary(columns, *first_position, all->dims()[2]);
      for (size_t i = heads.query == 0 ? 1 : 0; i < 2; ++i)
        parts[i] = device_.run({.call = Call::rotary, .compute = compute(all->spec.format)},
                               {parts[i], cosine, sine});
    }
    const auto made = [&](const TensorRef& part, int64_t count) {
      return part ? make_tensor({x.rows(), count * heads.width}, part, TileLayout::heads, columns)
                  : Tensor{};
    };
    return {made(parts[0], heads.query), made(parts[1], heads.kv), made(parts[2], heads.kv)};
  }

  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                   const Visibility& visible) override {
    const HeadColumns columns{heads.width};
    const TensorRef query = whole(as_heads(q, heads.query, columns));
    const std::vector<Piece> pieces = as_heads(k, heads.kv, columns);
    const TensorRef keys = whole(pieces), values = whole(as_heads(v, heads.kv, columns));
    const int64_t groups = query->dims()[0];
    ensure(groups == 1 || groups == visible.segments, Fault::internal,
           "[ttnn] {} groups of rows and {} segments", groups, visible.segments);
    AttentionMask hidden{.visible = {visible.keys.begin(), visible.keys.end()},
                         .segments = groups == 1 ? visible.segments : 1,
                         .real_rows = q.rows() / groups,
                         .rows = query->dims()[2]};
    for (const Piece& p : pieces) hidden.pieces.push_back({p.rows / groups, p.held->dims()[2]});
    const std::array operands{query, keys, values, constants_.mask(hidden)};
    Request r{.call = Call::attention,
              .scalar = 1.f / std::sqrt(static_cast<float>(heads.width)),
              .compute = {.fidelity = fidelity(query->spec.format), .f32_accumulate = false}};
    r.chunks = plan_chunks(r, specs_of(operands), device_.room(r, specs_of(operands)));
    const TensorRef y = device_.run_all(r, operands)[0];
    const TensorRef beside = device_.run({.call = Call::concat_heads}, {y});
    return make_tensor(q.shape(), beside, TileLayout::spread, columns);
  }

  Tensor embed(const Weight& table, std::span<const int32_t> ids, float scale) override {
    const int64_t padded = round_up(std::ssize(ids));
    std::vector<float> row(static_cast<size_t>(padded));
    std::ranges::copy(ids, row.begin());  // below 2^24: exact
    const TensorRef on_device = device_.upload(
        {.dims = {1, 1, 1, padded}, .format = Format::u32, .layout = Layout::row_major}, row);
    const TensorRef found =
        device_.run({.call = Call::embedding}, {on_device, weight(table).matrices[0]});
    return make_tensor({std::ssize(ids), table.inputs}, scaled(found, scale));
  }

  Tensor add_scaled(const Tensor& x, const Tensor& y, float scale) override {
    const TensorRef a = as_rows(x);
    const TensorRef b = device_.reshape(scaled(as_rows(y), scale), a->dims());
    return make_tensor(x.shape(), device_.run({.call = Call::add}, {a, b}));
  }

  Tensor multiply(const Tensor& x, const Tensor& y) override {
    const TensorRef a = as_rows(x);
    const TensorRef b = device_.reshape(as_rows(y), a->dims());
    return make_tensor(x.shape(), device_.run({.call = Call::multiply}, {a, b}));
  }

  Tensor concat_rows(std::span<const Tensor> parts) override {
    std::vector<TensorRef> held;
    std::vector<int64_t> rows;
    int64_t total = 0;
    for (const Tensor& part : parts) {
      held.push_back(device_.flat(as_rows(part)));
      rows.push_back(part.rows());
      total += part.rows();
    }
    return make_tensor({total, parts[0].columns()}, device_.stack(held, rows));
  }

  Tensor slice_rows(const Tensor& x, int64_t first, int64_t last) override {
    const TtBuffer& b = buffer(x);
    const TensorRef all = joined(buffer(x).pieces);
    return make_tensor(
        {last - first, x.columns()},
        device_.rows(b.layout == TileLayout::heads ? all : device_.flat(all), first, last - first),
        b.layout, b.columns);
  }

  void write_rows(Tensor& to, const Tensor& rows, int64_t first) override {
    if (buffer(rows).layout == TileLayout::heads) {
      to = written(to, rows, first);
      return;
    }
    const int64_t last = first + rows.rows();
    std::vector<Tensor> parts;
    if (first > 0) parts.push_back(slice_rows(to, 0, first));
    parts.push_back(rows);
    if (last < to.rows()) parts.push_back(slice_rows(to, last, to.rows()));
    to = concat_rows(parts);
  }

 private:
  struct Recording {
    bool compiled = false;
    TensorId trace = 0;
    std::vector<Tensor> inputs, outputs;
  };
  void forget_traces() {
    for (auto& [key, r] : recordings_) {
      if (r.trace != 0) device_.forget(r.trace);
      r = {.compiled = r.compiled};
    }
  }

  // Where the weight, or what it made, has this format.
  Fidelity fidelity(Format format) const {
    return use_.fidelity.value_or(format == Format::bfp8 ? Fidelity::hifi2 : Fidelity::hifi4);
  }
  Compute compute(Format format) const { return {.fidelity = fidelity(format)}; }

  TensorRef product(const TensorRef& x, const TensorRef& w, const TensorRef& bias,
                    Activation activation, Format format) {
    const std::array operands{x, w, bias};
    Request r{.call = Call::linear,
              .format = format,
              .activation = activation,
              .compute = compute(w->spec.format)};
    r.blocks = plan_blocks(r, specs_of(operands), device_.room(r, specs_of(operands)));
    return device_.run_all(r, operands)[0];
  }

  // [1, 1, images * 3 * side, side]. Bytes k go up as they are: b = (k - 127.5) / 128 is exact in
  // bf16, and b + b (1 + 2^-7) / 256 rounds as 2 k / 255 - 1 does, for every k. The scalar 2 / 255
  // in bf16 would be off by 0.4 %.
  TensorRef pixels(const Pictures& p) {
    const Dims dims{1, 1, 3 * p.images * p.side, p.side};
    if (!p.of_bytes) return device_.upload({.dims = dims}, p.bands);
    std::vector<float> bytes(p.bands.size());
    std::ranges::transform(p.bands, bytes.begin(),
                           [](float v) { return std::round((v + 1) * 127.5f); });
    const TensorRef k =
        device_.typecast(device_.upload({.dims = dims, .format = Format::u8}, bytes), Format::bf16);
    const TensorRef centred =
        device_.run({.call = Call::add}, {k, constants_.row(-127.5f, p.side)});
    const TensorRef most = scaled(centred, 0x1p-7f);
    return device_.run({.call = Call::add}, {most, scaled(most, 0x1.02p-8f)});
  }

  TensorRef scaled(const TensorRef& x, float scale) {
    if (scale == 1.f) return x;
    return device_.run({.call = Call::multiply_scalar, .scalar = scale}, {x});
  }

  // y + residual; a residual of fewer rows repeats: its rows are one group of y's.
  TensorRef add_residual(const TensorRef& y, const Tensor& residual, int64_t rows) {
    TensorRef r = as_rows(residual);
    const int64_t group = residual.rows();
    if (group == rows) {
      if (r->dims()[2] < y->dims()[2]) return device_.run({.call = Call::add}, {y, r});
      if (r->dims()[2] > y->dims()[2]) return device_.run({.call = Call::add}, {r, y});
      return device_.run({.call = Call::add}, {y, device_.reshape(r, y->dims())});
    }
    if (group % kTile == 0) {
      const TensorRef groups = device_.reshape(y, {rows / group, 1, group, y->dims()[3]});
      return device_.run({.call = Call::add}, {groups, r});
    }
    if (group == 1) return device_.run({.call = Call::add}, {y, operand_row(residual)});
    const std::vector<TensorRef> parts(static_cast<size_t>(rows / group), r);
    const std::vector<int64_t> counts(parts.size(), group);
    return device_.run({.call = Call::add}, {y, device_.stack(parts, counts)});
  }

  // The library's norms run over the logical columns: a ragged width leaves its zero tail behind
  // and gets it back.
  TensorRef norm(Call call, const Tensor& x, const Tensor& scale, const Tensor& shift) {
    TensorRef in = as_rows(x);
    const Dims whole = in->dims();
    const bool ragged = x.columns() != whole[3];
    const auto cut = [&](const TensorRef& h) {
      return ragged ? device_.slice_axis(h, 3, 0, x.columns()) : h;
    };
    const TensorRef weight = cut(operand_row(scale));
    const TensorRef bias = shift ? cut(operand_row(shift)) : nullptr;
    const Request r{.call = call, .scalar = kNormEps, .compute = compute(use_.format)};
    in = cut(in);
    const TensorRef y = shift ? device_.run(r, {in, weight, bias}) : device_.run(r, {in, weight});
    return device_.pad(y, whole);
  }

  // ---- A tensor in the layout that a call needs ----

  TensorRef moved(const TensorRef& x, const TensorRef& mover) {
    return device_.run({.call = Call::linear}, {x, mover, nullptr});
  }

  TensorRef as_rows(const Tensor& x) {
    const TtBuffer& b = buffer(x);
    ensure(b.layout != TileLayout::heads, Fault::internal,
           "[ttnn] heads of {} are used as a matrix", to_string(x.shape()));
    if (b.layout == TileLayout::rows) return held(x);
    return moved(held(x), constants_.mover(x.columns(), b.columns, false));
  }

  // [b, 1, r, h d]
  TensorRef as_spread(const Tensor& x, HeadColumns columns) {
    const TtBuffer& b = buffer(x);
    if (b.layout == TileLayout::spread && b.columns.width == columns.width) return held(x);
    TensorRef plain = as_rows(x);
    if (columns.width % kTile == 0) return plain;
    return moved(plain, constants_.mover(x.columns(), columns, true));
  }

  std::vector<Piece> as_heads(const Tensor& x, int64_t heads, HeadColumns columns) {
    if (buffer(x).layout == TileLayout::heads) return buffer(x).pieces;
    TensorRef wide = as_spread(x, columns);
    if (wide->dims()[2] == 1) wide = device_.pad(wide, {1, 1, kTile, wide->dims()[3]});
    return {{0, x.rows(), device_.heads(wide, 0, heads, columns.padded())}};
  }

  // [1, 1, 1, c], to be repeated.
  TensorRef operand_row(const Tensor& x) { return device_.slice_axis(as_rows(x), 2, 0, 1); }

  // Pieces below each other, padding included.
  TensorRef whole(std::span<const Piece> pieces) {
    std::vector<TensorRef> parts;
    for (const Piece& piece : pieces) parts.push_back(piece.held);
    return device_.concat(parts, 2);
  }

  // And without padding between them.
  TensorRef joined(std::span<const Piece> pieces) {
    if (pieces.size() == 1) return pieces[0].held;
    std::vector<TensorRef> parts;
    std::vector<int64_t> rows;
    for (const Piece& piece : pieces) {
      parts.push_back(piece.held);
      rows.push_back(piece.rows);
    }
    return device_.stack(parts, rows);
  }

  // `to` with `rows` from `first` on, and nothing behind them. Pieces that lie before become one,
  // once per call: then every Euler step only replaces the last piece.
  Tensor written(const Tensor& to, const Tensor& rows, int64_t first) {
    const HeadColumns columns = buffer(rows).columns;
    std::vector<Piece> pieces;
    if (first > 0) pieces = as_heads(to, to.columns() / columns.width, columns);
    while (!pieces.empty() && pieces.back().first >= first) pieces.pop_back();
    if (!pieces.empty()) {
      Piece& last = pieces.back();
      ensure(last.first + last.rows >= first, Fault::internal,
             "[ttnn] rows {} to {} of a cache were never written", last.first + last.rows, first);
      last.rows = first - last.first;
      if (last.held->dims()[2] > round_up(last.rows))
        last.held = device_.slice_axis(last.held, 2, 0, round_up(last.rows));
      pieces = {{0, first, device_.typecast(joined(pieces), held(rows)->spec.format)}};
    }
    pieces.push_back({first, rows.rows(), joined(buffer(rows).pieces)});
    return make_tensor(to.shape(), std::move(pieces), TileLayout::heads, columns);
  }

  Use use_;
  Device device_;
  std::map<GraphKey, Recording> recordings_;  // of one kind of call
  Constants constants_;
};

}  // namespace
}  // namespace tt

std::unique_ptr<Kernels> make_ttnn_backend(std::unique_ptr<tt::TtApi> device, const tt::Use& use) {
  return std::make_unique<tt::TtnnKernels>(std::move(device), use);
}

}  // namespace tendon
