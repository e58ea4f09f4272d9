// The weights of a base with those of an adapter merged into them.
#include <algorithm>
#include <cmath>

#include "checkpoint/adapter.h"
#include "checkpoint/values.h"
#include "tensor/bf16.h"
#include "tensor/check.h"
#include "tensor/nearest.h"
#include "tensor/parallel.h"

namespace tendon {
namespace {

using Update = AdapterTensors::Update;

// Factors of an update as matrices: W gets scale B A.
struct Factors {
  int64_t rank = 0;
  std::vector<float> a, b;  // [rank, columns], [rows, rank]
};

// What happens to the rows of a weight.
struct LowRank {
  std::vector<Factors> factors;  // one, or one for each group of rows
  int64_t rows = 0;              // of a group
  float scale = 0;
  std::vector<float> lengths;  // DoRA: of each row, once updated; else empty

  // Row `r` of the weight, in place; `room` is as long as a row.
  void apply(int64_t r, std::span<float> row, std::span<float> room) const {
    const Factors& f = factors[static_cast<size_t>(r / rows)];
    std::ranges::fill(room, 0.f);
    for (int64_t l = 0; l < f.rank; ++l) {
      const float b = f.b[static_cast<size_t>(r % rows * f.rank + l)];
      const float* a = f.a.data() + static_cast<size_t>(l) * room.size();
      for (size_t c = 0; c < room.size(); ++c) room[c] += b * a[c];
    }
    for (size_t c = 0; c < room.size(); ++c) row[c] += scale * room[c];
    if (lengths.empty()) return;
    double squares = 0;
    for (const float v : row) squares += static_cast<double>(v) * static_cast<double>(v);
    const double factor = lengths[static_cast<size_t>(r)] / std::sqrt(squares);
    for (float& v : row) v = static_cast<float>(factor * static_cast<double>(v));
  }
};

std::vector<float> floats(const HostTensor& t, const std::string& file) {
  check_values(t, file);
  std::vector<float> values(static_cast<size_t>(t.shape.count()));
  convert_to_f32(t, values);
  return values;
}

// openpi: A [heads, inputs, rank] and B [heads, rank, outputs]. Each head has rows of its own (q, k
// and v), or columns (the projection after attention), and then B is summed over the heads: JAX's
// einsum has summed A x over them before.
std::vector<Factors> of_heads(const HostTensor& a, const HostTensor& b, int64_t columns,
                              const std::string& file) {
  const int64_t heads = a.shape[0], inputs = a.shape[1], rank = a.shape[2], outputs = b.shape[2];
  const std::vector<float> all_a = floats(a, file), all_b = floats(b, file);
  const auto at = [](const std::vector<float>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  std::vector<Factors> factors;
  const bool rows = inputs == columns;
  for (int64_t h = 0; h < heads; ++h) {
    if (h == 0 || rows) factors.push_back({rank});
    Factors& f = factors.back();
    f.a.resize(static_cast<size_t>(rank * columns));
    f.b.resize(static_cast<size_t>(outputs * rank));
    for (int64_t l = 0; l < rank; ++l) {
      for (int64_t i = 0; i < inputs; ++i)
        f.a[static_cast<size_t>(l * columns + (rows ? 0 : h * inputs) + i)] =
            at(all_a, (h * inputs + i) * rank + l);
      for (int64_t o = 0; o < outputs; ++o)
        f.b[static_cast<size_t>(o * rank + l)] += at(all_b, (h * rank + l) * outputs + o);
    }
  }
  return factors;
}

class MergedWeights final : public WeightSource {
 public:
  MergedWeights(std::unique_ptr<WeightSource> base, AdapterTensors adapter,
                const LoraSettings& settings)
      : base_(std::move(base)), adapter_(std::move(adapter)), settings_(settings) {
    tensors_ = base_->tensors();
    summary_ = AdapterSummary{.file = adapter_.file};
    replace();
    std::erase_if(adapter_.updates, [&](const auto& u) { return !prepare(u.first, u.second); });
    summary_->kept_in_bf16 = kept_in_bf16();
    description_ = base_->description() + " with " + adapter_.file;
  }

  HostTensor get(const std::string& name, const Shape& shape) override {
    const auto whole = adapter_.whole.find(name);
    HostTensor t;
    if (whole == adapter_.whole.end()) {
      t = base_->get(name, shape);
    } else {
      if (const auto problem = find_fault(*this, name, shape)) refuse(*problem);
      t = whole->second;
      check_values(t, adapter_.file);
    }
    if (adapter_.updates.contains(name)) t = merged(t, name);
    if (const auto more = biases_.find(name); more != biases_.end()) t = with_bias(t, more->second);
    return t;
  }

 private:
  struct Bias {
    HostTensor values;
    double scale = 0;
  };

  void replace() {
    std::erase_if(adapter_.whole, [](const auto& w) { return is_unread(w.first); });
    for (const auto& [name, tensor] : adapter_.whole) {
      fits_base(name, tensor.name);
      HostTensor& base = tensors_.at(name);
      refuse_other_shape(tensor, base.shape);
      refuse_other_type(tensor);
      base = tensor;
      summary_->weights.push_back(name);
      ++summary_->replaced;
    }
    // A module that was to be saved and is not there would run as it was before training.
    for (const std::string& module : settings_.whole)
      for (const auto& [name, tensor] : tensors_)
        ensure(!ends_with_parts(name.substr(0, name.rfind('.')), module) ||
                   adapter_.whole.contains(name) || is_unread(name),
               Fault::checkpoint,
               "{} lacks {}, which modules_to_save of {} names; copy the adapter again",
               adapter_.file, name, settings_.file);
  }

  void fits_base(const std::string& weight, const std::string& of) const {
    if (tensors_.contains(weight)) return;
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    fail(Fault::checkpoint,
         "{}: {} changes {}, which {} does not have; nearest: {}. Does the adapter belong to "
         "another model?",
         adapter_.file, of, weight, base_->description(), nearest(weight, names));
  }

  void refuse_other_shape(const HostTensor& t, const Shape& expected) const {
    ensure(t.shape == expected, Fault::checkpoint,
           "{}: {} is {}, expected {}; does the adapter "
           "belong to another model?",
           adapter_.file, t.name, to_string(t.shape), to_string(expected));
  }

  void refuse_other_type(const HostTensor& t) const {
    ensure(t.dtype == DType::f32 || t.dtype == DType::bf16 || t.dtype == DType::f16,
           Fault::checkpoint, "{}: {} has type {}, expected F32, BF16 or F16", adapter_.file,
           t.name, name(t.dtype));
  }

  // Whether there is something to do at `weight`.
  bool prepare(const std::string& weight, const Update& u) {
    const HostTensor& any = u.a ? *u.a : u.b ? *u.b : u.magnitude ? *u.magnitude : *u.bias;
    ensure(u.a && u.b, Fault::checkpoint, "{}: {} has no {} beside it; copy the adapter again",
           adapter_.file, any.name, u.a ? "lora_B" : "lora_A");
    if (is_unread(weight)) return false;
    fits_base(weight, u.a->name);
    for (const auto* t : {&u.a, &u.b, &u.magnitude, &u.bias})
      if (*t) refuse_other_type(**t);
    const int64_t rank = check_shapes(*u.a, *u.b, tensors_.at(weight).shape);
    const double scale = scale_of(u, rank);
    const bool told = !settings_.file.empty();
    ensure(!told || u.magnitude.has_value() == settings_.dora, Fault::checkpoint,
           "{}: {} has {} lora_magnitude_vector, but {} says use_dora {}", adapter_.file, u.a->name,
           u.magnitude ? "a" : "no", settings_.file, settings_.dora);
    ensure(!told || u.bias.has_value() == settings_.bias, Fault::checkpoint,
           "{}: {} has {} bias, but {} says lora_bias {}", adapter_.file, u.b->name,
           u.bias ? "a" : "no", settings_.file, settings_.bias);
    const int64_t rows = tensors_.at(weight).shape[0];
    if (u.magnitude)
      ensure(u.magnitude->shape.count() == rows, Fault::checkpoint,
             "{}: {} is {}, expected {} values", adapter_.file, u.magnitude->name,
             to_string(u.magnitude->shape), rows);
    if (u.bias) add_bias(weight, u, scale);
    summary_->weights.push_back(weight);
    ++summary_->updated;
    const auto widen = [&](auto& range, auto value) {
      range = summary_->updated == 1
                  ? std::pair(value, value)
                  : std::pair(std::min(range.first, value), std::max(range.second, value));
    };
    widen(summary_->ranks, rank);
    widen(summary_->scales, scale);
    summary_->dora = summary_->dora || u.magnitude;
    return true;
  }

  void add_bias(const std::string& weight, const Update& u, double scale) {
    ensure(!u.magnitude, Fault::checkpoint,
           "{}: {} has a length and a bias, which PEFT itself "
           "merges to another model than it runs",
           adapter_.file, u.bias->name);
    const std::string bias = weight.substr(0, weight.rfind('.')) + ".bias";
    fits_base(bias, u.bias->name);
    refuse_other_shape(*u.bias, tensors_.at(bias).shape);
    biases_[bias] = {*u.bias, scale};
    summary_->weights.push_back(bias);
  }

  // Of W [outputs, inputs] (more axes: of a convolution): A [rank, inputs] and B [outputs, rank],
  // or openpi's factors per head. The rank.
  int64_t check_shapes(const HostTensor& a, const HostTensor& b, const Shape& w) const {
    const int64_t outputs = w[0], inputs = w.count() / w[0];
    const auto say = [&](const HostTensor& t, const std::string& expected) {
      fail(Fault::checkpoint,
           "{}: {} is {}, expected {} for a weight of {}; does the adapter "
           "belong to another model?",
           adapter_.file, t.name, to_string(t.shape), expected, to_string(w));
    };
    const bool convolution = w.rank() > 2;
    if (a.shape.rank() == 3 && b.shape.rank() == 3 && w.rank() == 2) {
      const int64_t heads = a.shape[0], rank = a.shape[2];
      const bool of_rows = a.shape[1] == inputs && heads * b.shape[2] == outputs;
      const bool of_columns = heads * a.shape[1] == inputs && b.shape[2] == outputs;
      if (!of_rows && !of_columns) say(a, "[heads, inputs, rank] with B [heads, rank, outputs]");
      if (b.shape[0] != heads || b.shape[1] != rank) say(b, to_string({heads, rank, b.shape[2]}));
      return rank;
    }
    if (a.shape.rank() != w.rank() || a.shape.count() != a.shape[0] * inputs)
      say(a, fmt::format("[rank, {}{}]", inputs, convolution ? " in all" : ""));
    const int64_t rank = a.shape[0];
    if (b.shape.rank() != w.rank() || b.shape[0] != outputs || b.shape.count() != outputs * rank)
      say(b, fmt::format("[{}, {}]", outputs, rank));
    return rank;
  }

  // What the one pattern says that fits a module; PEFT's order of several is not known here.
  template <class T>
  T setting(const Update& u, const std::vector<std::pair<std::string, T>>& patterns,
            T usual) const {
    std::optional<T> told;
    for (const auto& [name, value] : patterns) {
      if (!ends_with_parts(u.module, name)) continue;
      ensure(told.value_or(value) == value, Fault::checkpoint,
             "{}: patterns say {} and {} of {}; name each module in full", settings_.file,
             told.value_or(value), value, u.module);
      told = value;
    }
    return told.value_or(usual);
  }

  double scale_of(const Update& u, int64_t rank) const {
    if (!settings_.file.empty()) {
      const int64_t told = setting(u, settings_.ranks, settings_.rank);
      ensure(rank == told, Fault::checkpoint, "{}: {} is {}: its rank is {}, but {} says {}",
             adapter_.file, u.a->name, to_string(u.a->shape), rank, settings_.file, told);
    }
    if (settings_.scale) return *settings_.scale;
    const auto r = static_cast<double>(rank);
    return setting(u, settings_.alphas, settings_.alpha) /
           (settings_.rank_stabilised ? std::sqrt(r) : r);
  }

  HostTensor merged(const HostTensor& w, const std::string& name) const {
    const LowRank update = low_rank(name);
    const int64_t columns = w.shape.count() / w.shape[0];
    std::vector<float> values(static_cast<size_t>(w.shape.count()));
    convert_to_f32(w, values);
    parallel_for(w.shape[0], hardware_threads(), [&](int64_t first, int64_t last) {
      std::vector<float> room(static_cast<size_t>(columns));
      for (int64_t r = first; r < last; ++r)
        update.apply(r, {values.data() + r * columns, room.size()}, room);
    });
    HostTensor sum = host_tensor(w.name, w.shape, std::move(values));
    check_values(sum, description_);
    return sum;
  }

  LowRank low_rank(const std::string& weight) const {
    const Update& u = adapter_.updates.at(weight);
    const Shape& w = tensors_.at(weight).shape;
    LowRank all;
    if (u.a->shape.rank() == 3 && w.rank() == 2)
      all.factors = of_heads(*u.a, *u.b, w[1], adapter_.file);
    else
      all.factors.push_back(
          {u.a->shape[0], floats(*u.a, adapter_.file), floats(*u.b, adapter_.file)});
    if (u.magnitude) all.lengths = floats(*u.magnitude, adapter_.file);
    all.rows = w[0] / std::ssize(all.factors);
    all.scale = static_cast<float>(scale_of(u, all.factors.front().rank));
    return all;
  }

  // Of a few rows of each weight: how much of what changes is left after rounding to bf16, to which
  // weights stored in bf16 belong already.
  double kept_in_bf16() const {
    constexpr int64_t kRows = 8;
    double kept = 0, changed = 0;
    for (const auto& [name, u] : adapter_.updates) {
      const HostTensor& w = tensors_.at(name);
      const LowRank update = low_rank(name);
      std::vector<float> before(static_cast<size_t>(w.shape.count() / w.shape[0])), room = before;
      for (int64_t n = 0; n < std::min(kRows, w.shape[0]); ++n) {
        const int64_t r = n * w.shape[0] / std::min(kRows, w.shape[0]);
        convert_row_to_f32(w, r, before);
        std::vector<float> after = before;
        update.apply(r, after, room);
        for (size_t c = 0; c < after.size(); ++c) {
          const auto change = static_cast<double>(after[c]) - static_cast<double>(before[c]);
          const auto rounded = [](float v) { return static_cast<double>(from_bf16(to_bf16(v))); };
          kept += (rounded(after[c]) - rounded(before[c])) * change;
          changed += change * change;
        }
      }
    }
    return changed == 0 ? 1 : kept / changed;
  }

  HostTensor with_bias(const HostTensor& t, const Bias& more) const {
    std::vector<float> values(static_cast<size_t>(t.shape.count()));
    convert_to_f32(t, values);
    const std::vector<float> added = floats(more.values, adapter_.file);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] += static_cast<float>(more.scale) * added[i];
    HostTensor sum = host_tensor(t.name, t.shape, std::move(values));
    check_values(sum, description_);
    return sum;
  }

  std::unique_ptr<WeightSource> base_;
  AdapterTensors adapter_;
  LoraSettings settings_;
  std::map<std::string, Bias> biases_;
};

}  // namespace

std::unique_ptr<WeightSource> merge_adapter(std::unique_ptr<WeightSource> base,
                                            AdapterTensors adapter, const LoraSettings& settings) {
  return std::make_unique<MergedWeights>(std::move(base), std::move(adapter), settings);
}

}  // namespace tendon
