#include "ops/ops.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "tensor/check.h"

namespace tendon {

namespace {

int64_t float_bytes(const Tensor& x) { return x ? 4 * x.shape().count() : 0; }

void ensure_matrix(std::string_view op, std::string_view which, const Tensor& x) {
  ensure(static_cast<bool>(x), Fault::internal, "[{}] {} is empty", op, which);
  ensure(x.shape().rank() == 2 && x.rows() > 0 && x.columns() > 0, Fault::internal,
         "[{}] {} is {}, expected a matrix", op, which, to_string(x.shape()));
}

void ensure_row(std::string_view op, std::string_view which, const Tensor& x, int64_t columns) {
  ensure_matrix(op, which, x);
  ensure(x.rows() == 1 && x.columns() == columns, Fault::internal,
         "[{}] {} is {}, expected [1, {}]", op, which, to_string(x.shape()), columns);
}

void ensure_weight(std::string_view op, const Tensor& x, const Weight& w) {
  ensure_matrix(op, "x", x);
  ensure(static_cast<bool>(w), Fault::internal, "[{}] the weight '{}' was not prepared", op,
         w.name);
  ensure(x.columns() == w.inputs, Fault::internal, "[{}] x is {} but {} expects {} columns", op,
         to_string(x.shape()), w.name, w.inputs);
}

void ensure_same(std::string_view op, const Tensor& x, const Tensor& y) {
  ensure_matrix(op, "x", x);
  ensure(y && x.shape() == y.shape(), Fault::internal, "[{}] x is {} but y is {}", op,
         to_string(x.shape()), to_string(y.shape()));
}

OpCall of(Op op, const Shape& shape) { return {op, shape[0], shape[1], shape[1]}; }
OpCall of(Op op, const Tensor& x, const Weight& w) { return {op, x.rows(), w.inputs, w.outputs}; }

// The backend that runs an op. A fallback is given copies of what lies on the device, and what it
// makes is copied there.
struct Runner {
  Kernels& kernels;
  Kernels& device;
  bool native = true;
  OpEvent& event;
  Weight prepared = {};  // for the fallback

  Tensor operator()(const Tensor& x) {
    if (native || !x) return x;
    ++event.downs;
    return copied(x, device, kernels);
  }
  const Weight& operator()(const Weight& w) {
    if (native) return w;
    prepared = w;
    prepared.native = w.fallback;
    return prepared;
  }
  Tensor back(const Tensor& x) {
    if (native || !x) return x;
    if (x.shape().count() == 0) return {};  // such as the queries of a product without any
    ++event.ups;
    return copied(x, kernels, device);
  }
  Qkv back(const Qkv& r) { return {back(r.q), back(r.k), back(r.v)}; }

  static Tensor copied(const Tensor& x, Kernels& from, Kernels& to) {
    std::vector<float> values(static_cast<size_t>(x.shape().count()));
    from.download(x, values);
    return to.upload(values, x.shape());
  }
};

}  // namespace

void Ops::keep_on_host(std::span<const Module> modules) {
  ensure(fallback_ || modules.empty(), Fault::usage,
         "a module can only stay on the host with --fallback=reference");
  for (const Module m : modules) host_modules_ |= 1u << static_cast<int>(m);
}

std::vector<Tensor> Ops::graph(const GraphKey& key, std::span<const Tensor> inputs,
                               const Kernels::Body& body) {
  if (!kernels_.traits().records || tap_ || fallback_) return body(inputs);
  constexpr size_t kRecordedMax = 32;  // more than any backend keeps
  std::vector<OpEvent> events;
  struct Recording {
    std::vector<OpEvent>*& into;
    ~Recording() { into = nullptr; }
  };
  const Recording until_the_end{recording_ = &events};
  calls_.clear();
  Kernels::Replayed r = kernels_.graph(key, inputs, body);
  Recorded& recorded = recorded_[key];
  recorded.used = ++graphs_;
  if (!r.again) {
    for (OpEvent& event : events) {  // as a replay will tell them
      event.replayed = true;
      event.seconds = 0;
      if (event.calls)
        for (DeviceCall& call : *event.calls) call.seconds = 0;
    }
    recorded.events = std::move(events);
    if (recorded_.size() > kRecordedMax)
      recorded_.erase(std::ranges::min_element(
          recorded_, {}, [](const auto& entry) { return entry.second.used; }));
    return std::move(r.outputs);
  }
  recording_ = nullptr;
  if (!calls_.empty())
    tell({.op = Op::write_rows, .module = place_.module});  // inputs to their place
  for (const OpEvent& event : recorded.events) count(event);
  return std::move(r.outputs);
}

Tensor Ops::tap(std::string_view name, const Tensor& x) {
  if (!tap_) return x;
  std::string full;
  if (place_.step >= 0) full = fmt::format("step.{}.", place_.step);
  full += tendon::name(place_.module);
  if (place_.layer >= 0) full += fmt::format(".layer.{}", place_.layer);
  if (!name.empty()) full += fmt::format(".{}", name);
  Tensor y = tap_(full, x);
  ensure(y && y.shape() == x.shape(), Fault::internal, "[tap] {} is {}, its tap gave {}", full,
         to_string(x.shape()), to_string(y.shape()));
  return y;
}

Tensor Ops::linear(std::string_view name, const Tensor& x, const Weight& w, const Epilogue& e) {
  if (tap_) tap(name, linear(x, w));
  return linear(x, w, e);
}

Qkv Ops::qkv_tapped(const Tensor& x, const Weight& w, const Heads& heads, int64_t first_position) {
  if (tap_) {
    const Qkv plain = qkv(x, w, heads);
    tap("q", plain.q), tap("k", plain.k), tap("v", plain.v);
  }
  return qkv(x, w, heads, first_position);
}

void Ops::tell(OpEvent event) {
  event.provider = (event.native ? kernels_ : *fallback_).traits().name;
  // Transfers of the fallback are counted by the op, not as calls of the device.
  if (event.native && reports_ && !event.calls) event.calls = calls_;
  calls_.clear();
  count(event);
  if (recording_) recording_->push_back(std::move(event));
}

void Ops::count(const OpEvent& event) {
  coverage_.add(event);
  if (observer_) observer_(event);
}

// The only place that knows about fallbacks. `kernel(on)` asks the backend `on.kernels` for the op,
// with its tensors and weights as `on(x)`.
template <class Kernel, class Describe>
auto Ops::run(const OpCall& call, Cost cost, const Kernel& kernel, const Describe& describe) {
  if (poll_) poll_();
  const Op op = call.op;
  const bool native = !on_host() && kernels_.supports(call);
  if (!native && !fallback_)
    fail(Fault::backend,
         "{} has no kernel for {} {} in {}; --fallback=reference runs it elsewhere and counts it",
         kernels_.traits().name, name(op), describe(), kernels_.traits().precision);
  calls_.clear();
  const auto start = std::chrono::steady_clock::now();
  Kernels& runner = native ? kernels_ : *fallback_;
  OpEvent event{.op = op,
                .module = place_.module,
                .layer = place_.layer,
                .native = native,
                .dtype = runner.traits().precision,
                .flops = cost.flops,
                .bytes = cost.bytes,
                .ups = native && is_upload(op) ? 1 : 0,
                .downs = native && op == Op::download ? 1 : 0};
  Runner on{runner, kernels_, native, event};
  if (cost.weight) event.weight_bytes = on(*cost.weight).native->bytes();
  auto result = on.back(kernel(on));
  if (observer_) runner.synchronize();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  if (!runner.traits().simulated) event.seconds = took.count();
  tell(std::move(event));
  return result;
}

template <class Kernel>
auto Ops::run(const OpCall& call, Cost cost, const Kernel& kernel) {
  return run(call, cost, kernel, [&] {
    if (!cost.weight) return to_string(Shape{call.rows, call.outputs});
    return fmt::format("{} x {} [{}, {}]", to_string(Shape{call.rows, call.inputs}),
                       cost.weight->name, call.outputs, call.inputs);
  });
}

Weight Ops::prepare(WeightParts parts) {
  ensure(parts.matrices.empty() != parts.packed.empty(), Fault::internal,
         "[prepare] {} has no matrix, or two kinds", parts.name);
  if (parts.packed.empty()) parts.outputs = parts.inputs = 0;
  for (const HostTensor& m : parts.matrices) {
    ensure(m.shape.rank() >= 2, Fault::internal, "[prepare] {}: {} is {}, expected a matrix",
           parts.name, m.name, to_string(m.shape));
    const int64_t inputs = m.shape.count() / m.shape[0];
    ensure(parts.inputs == 0 || parts.inputs == inputs, Fault::internal,
           "[prepare] {}: {} has {} columns, its neighbours {}", parts.name, m.name, inputs,
           parts.inputs);
    parts.inputs = inputs;
    parts.outputs += m.shape[0];
  }
  ensure(parts.bias.empty() || std::ssize(parts.bias) == parts.outputs, Fault::internal,
         "[prepare] {} has {} rows and a bias of {}", parts.name, parts.outputs, parts.bias.size());
  const auto prepared = [&](Kernels& kernels) {
    ensure(parts.packed.empty() || kernels.traits().takes_packed, Fault::usage,
           "{} is packed for the cpu backend; the {} backend reads checkpoints", parts.name,
           kernels.traits().name);
    return kernels.prepare(parts);
  };
  Weight w{parts.name,   parts.kind,          parts.outputs,
           parts.inputs, !parts.bias.empty(), prepared(kernels_)};
  if (fallback_) w.fallback = prepared(*fallback_);
  calls_.clear();
  tell({.op = Op::prepare, .module = place_.module});
  return w;
}

Tensor Ops::upload(std::span<const float> values, const Shape& shape) {
  ensure(std::ssize(values) == shape.count(), Fault::internal, "[upload] {} values for {}",
         values.size(), to_string(shape));
  return run(of(Op::upload, shape), {.bytes = 4 * shape.count()},
             [&](Runner& on) { return on.kernels.upload(values, shape); });
}

Tensor Ops::patches(const Pictures& p) {
  ensure(
      p.patch > 0 && p.side % p.patch == 0 && std::ssize(p.bands) == 3 * p.images * p.side * p.side,
      Fault::internal, "[patches] {} values for {} pictures of {} by {} in patches of {}",
      p.bands.size(), p.images, p.side, p.side, p.patch);
  const Shape shape = p.patches();
  return run(of(Op::patches, shape), {.bytes = 4 * shape.count()},
             [&](Runner& on) { return on.kernels.patches(p); });
}

Tensor Ops::embed_times(const TimeEmbedding& e) {
  const Shape shape{std::ssize(e.times), e.width};
  ensure(shape.count() > 0 && e.width % 2 == 0 && e.min_period > 0, Fault::internal,
         "[embed_times] {} from a period of {} on", to_string(shape), e.min_period);
  return run(of(Op::embed_times, shape), {.bytes = 4 * shape.count()},
             [&](Runner& on) { return on.kernels.embed_times(e); });
}

void Ops::download(const Tensor& x, std::span<float> to) {
  ensure(x && std::ssize(to) == x.shape().count(), Fault::internal, "[download] {} into {} values",
         to_string(x.shape()), to.size());
  run(of(Op::download, x.shape()), {.bytes = float_bytes(x)}, [&](Runner& on) {
    on.kernels.download(on(x), to);
    return Tensor{};
  });
}

std::vector<float> Ops::download(const Tensor& x) {
  std::vector<float> values(static_cast<size_t>(x.shape().count()));
  download(x, values);
  return values;
}

Tensor Ops::linear(const Tensor& x, const Weight& w, const Epilogue& e) {
  ensure_weight("linear", x, w);
  if (e.bias) ensure_row("linear", "bias", e.bias, w.outputs);
  if (e.gate) ensure_row("linear", "gate", e.gate, w.outputs);
  if (e.residual)
    ensure(e.residual.columns() == w.outputs && x.rows() % e.residual.rows() == 0, Fault::internal,
           "[linear] residual is {}, expected [n, {}] with n dividing {}, for {}",
           to_string(e.residual.shape()), w.outputs, x.rows(), w.name);
  const int64_t m = x.rows();
  return run(of(Op::linear, x, w),
             {2 * m * w.outputs * w.inputs,
              float_bytes(x) + 4 * m * w.outputs + float_bytes(e.residual), &w},
             [&](Runner& on) {
               const Epilogue carried{e.activation, on(e.bias), on(e.residual), on(e.gate)};
               return on.kernels.linear(on(x), on(w), carried);
             });
}

Tensor Ops::gated_linear(const Tensor& x, const Weight& w) {
  ensure_weight("gated_linear", x, w);
  ensure(w.kind == WeightKind::gated && w.outputs % 2 == 0, Fault::internal,
         "[gated_linear] {} was not prepared as gate over up", w.name);
  return run(of(Op::gated_linear, x, w),
             {2 * x.rows() * w.outputs * w.inputs, float_bytes(x) + 2 * x.rows() * w.outputs, &w},
             [&](Runner& on) { return on.kernels.gated_linear(on(x), on(w)); });
}

Tensor Ops::layer_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  ensure_matrix("layer_norm", "x", x);
  ensure_row("layer_norm", "scale", scale, x.columns());
  ensure_row("layer_norm", "shift", shift, x.columns());
  return run(of(Op::layer_norm, x.shape()), {.bytes = 2 * float_bytes(x)},
             [&](Runner& on) { return on.kernels.layer_norm(on(x), on(scale), on(shift)); });
}

Tensor Ops::rms_norm(const Tensor& x, const Tensor& scale, const Tensor& shift) {
  ensure_matrix("rms_norm", "x", x);
  ensure_row("rms_norm", "scale", scale, x.columns());
  if (shift) ensure_row("rms_norm", "shift", shift, x.columns());
  return run(of(Op::rms_norm, x.shape()), {.bytes = 2 * float_bytes(x)},
             [&](Runner& on) { return on.kernels.rms_norm(on(x), on(scale), on(shift)); });
}

Qkv Ops::qkv(const Tensor& x, const Weight& w, const Heads& heads,
             std::optional<int64_t> first_position) {
  ensure_weight("qkv", x, w);
  const int64_t columns = (heads.query + 2 * heads.kv) * heads.width;
  ensure(w.outputs == columns, Fault::internal,
         "[qkv] {} has {} rows, {} query and {} key/value heads of {} need {}", w.name, w.outputs,
         heads.query, heads.kv, heads.width, columns);
  ensure(!first_position || (*first_position >= 0 && heads.width % 2 == 0), Fault::internal,
         "[qkv] rotary positions need an even head width and start at 0 or later; got {} and {}",
         heads.width, first_position.value_or(0));
  return run({Op::qkv, x.rows(), w.inputs, w.outputs, heads.width},
             {2 * x.rows() * w.outputs * w.inputs, float_bytes(x) + 4 * x.rows() * w.outputs, &w},
             [&](Runner& on) { return on.kernels.qkv(on(x), on(w), heads, first_position); });
}

Tensor Ops::attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& heads,
                      const Visibility& visible) {
  const auto& [keys, segments] = visible;
  ensure_matrix("attention", "q", q);
  ensure_same("attention", k, v);
  ensure(q.columns() == heads.query * heads.width && k.columns() == heads.kv * heads.width &&
             heads.query % heads.kv == 0,
         Fault::internal, "[attention] q is {} and k is {}; {} query, {} key/value heads of {}",
         to_string(q.shape()), to_string(k.shape()), heads.query, heads.kv, heads.width);
  ensure(segments >= 1 && q.rows() % segments == 0 && k.rows() % segments == 0, Fault::internal,
         "[attention] {} and {} rows do not fall into {} equal segments", q.rows(), k.rows(),
         segments);
  ensure(keys.size() == 1 || std::ssize(keys) == q.rows() / segments, Fault::internal,
         "[attention] {} entries of visible for {} rows", keys.size(), q.rows() / segments);
  int64_t seen = 0;
  for (const int32_t n : keys) {
    ensure(n >= 1 && n <= k.rows() / segments, Fault::internal,
           "[attention] a row sees {} keys of {}", n, k.rows() / segments);
    seen += n;
  }
  if (keys.size() == 1) seen *= q.rows() / segments;
  return run(
      {Op::attention, q.rows(), k.rows(), q.columns(), heads.width},
      {4 * seen * segments * heads.query * heads.width,
       2 * float_bytes(q) + float_bytes(k) + float_bytes(v)},
      [&](Runner& on) { return on.kernels.attention(on(q), on(k), on(v), heads, visible); },
      [&] { return to_string(q.shape()) + " on " + to_string(k.shape()); });
}

Tensor Ops::embed(const Weight& table, std::span<const int32_t> ids, float scale) {
  ensure(table && table.kind == WeightKind::table, Fault::internal,
         "[embed] {} was not prepared as a table", table.name);
  ensure(!ids.empty(), Fault::internal, "[embed] no ids for {}", table.name);
  for (const int32_t id : ids)
    ensure(id >= 0 && id < table.outputs, Fault::input,
           "[embed] token id {} is outside of {}, which has {} rows; is it the right tokenizer?",
           id, table.name, table.outputs);
  return run(
      {Op::embed, std::ssize(ids), table.outputs, table.inputs},
      {.bytes = 8 * std::ssize(ids) * table.inputs},
      [&](Runner& on) { return on.kernels.embed(on(table), ids, scale); },
      [&] { return fmt::format("{} ids of {}", ids.size(), table.name); });
}

Tensor Ops::add_scaled(const Tensor& x, const Tensor& y, float scale) {
  ensure_same("add_scaled", x, y);
  return run(of(Op::add_scaled, x.shape()), {.bytes = 3 * float_bytes(x)},
             [&](Runner& on) { return on.kernels.add_scaled(on(x), on(y), scale); });
}

Tensor Ops::multiply(const Tensor& x, const Tensor& y) {
  ensure_same("multiply", x, y);
  return run(of(Op::multiply, x.shape()), {.bytes = 3 * float_bytes(x)},
             [&](Runner& on) { return on.kernels.multiply(on(x), on(y)); });
}

Tensor Ops::concat_rows(std::span<const Tensor> parts) {
  ensure(!parts.empty(), Fault::internal, "[concat_rows] nothing to concatenate");
  int64_t rows = 0;
  for (const Tensor& part : parts) {
    ensure_matrix("concat_rows", "a part", part);
    ensure(part.columns() == parts[0].columns(), Fault::internal, "[concat_rows] {} under {}",
           to_string(part.shape()), to_string(parts[0].shape()));
    rows += part.rows();
  }
  return run(
      {Op::concat_rows, rows, parts[0].columns(), parts[0].columns()},
      {.bytes = 8 * rows * parts[0].columns()},
      [&](Runner& on) {
        if (on.native) return on.kernels.concat_rows(parts);
        std::vector<Tensor> carried;
        for (const Tensor& part : parts) carried.push_back(on(part));
        return on.kernels.concat_rows(carried);
      },
      [&] { return fmt::format("{} parts, {} rows", parts.size(), rows); });
}

Tensor Ops::slice_rows(const Tensor& x, int64_t first, int64_t last) {
  ensure_matrix("slice_rows", "x", x);
  ensure(first >= 0 && first < last && last <= x.rows(), Fault::internal,
         "[slice_rows] rows {} to {} of {}", first, last, to_string(x.shape()));
  return run(
      of(Op::slice_rows, x.shape()), {.bytes = 8 * (last - first) * x.columns()},
      [&](Runner& on) { return on.kernels.slice_rows(on(x), first, last); },
      [&] { return fmt::format("{} to {} of {}", first, last, to_string(x.shape())); });
}

void Ops::write_rows(Tensor& to, const Tensor& rows, int64_t first) {
  ensure_matrix("write_rows", "to", to);
  ensure_matrix("write_rows", "rows", rows);
  ensure(rows.columns() == to.columns() && first >= 0 && first + rows.rows() <= to.rows(),
         Fault::internal, "[write_rows] {} at row {} of {}", to_string(rows.shape()), first,
         to_string(to.shape()));
  to = run(
      of(Op::write_rows, rows.shape()), {.bytes = 2 * float_bytes(rows)},
      [&](Runner& on) {
        Tensor written = on(to);
        on.kernels.write_rows(written, on(rows), first);
        return written;
      },
      [&] { return fmt::format("{} at {}", to_string(rows.shape()), first); });
}

}  // namespace tendon
