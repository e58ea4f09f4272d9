// Every value of the weights, read once.
#include <algorithm>
#include <cmath>

#include "checkpoint/values.h"
#include "checkpoint/weights.h"
#include "tensor/check.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

// A healthy weight matrix has its largest value within a few dozen of its root mean square, a bias
// or a norm may have a few strong channels. A flipped exponent bit gives 2^16 and more.
constexpr double kMatrixOutlier = 100, kVectorOutlier = 1000;

// "[3, 17]" of the first value from `block` on that is wanted.
template <class Wanted>
std::string position(const HostTensor& t, int64_t block, Wanted wanted) {
  int64_t at = find_value(t, block, wanted);
  std::vector<int64_t> index(static_cast<size_t>(t.shape.rank()));
  for (size_t d = index.size(); d-- > 0;) {
    index[d] = at % t.shape[static_cast<int>(d)];
    at /= t.shape[static_cast<int>(d)];
  }
  return to_string(Shape(index));
}

void judge_outlier(const HostTensor& t, const Magnitudes& v, const std::string& name, Report& r) {
  // The root mean square of all but the largest, which would hide itself in a small tensor.
  const auto others = static_cast<double>(t.shape.count() - 1);
  const double square = static_cast<double>(v.largest) * static_cast<double>(v.largest);
  const double rms = std::sqrt(std::max(v.squares - square, 0.0) / std::max(others, 1.0));
  const double limit = t.shape.rank() >= 2 ? kMatrixOutlier : kVectorOutlier;
  const bool damaged = v.largest > kWeightMagnitudeMax;
  if (others < 1 || static_cast<double>(v.largest) <= limit * rms || v.largest == 0) return;
  const auto is_largest = [&](float f) { return std::abs(f) == v.largest; };
  r.add(damaged ? Finding::Level::error : Finding::Level::warning, "tensor.outlier", name,
        "{} {}: the value at {} has magnitude {:.4g}, but the root mean square of the others is "
        "{:.4g}, expected at most {} times that; a flipped bit? compare the file's checksum with "
        "the source's",
        name, to_string(t.shape), position(t, v.largest_block, is_largest), v.largest, rms, limit);
}

void judge_values(const HostTensor& t, const Magnitudes& v, Report& r) {
  const std::string name = canonical_name(t.name);
  const auto bad = [&](const char* check, const char* what, int64_t count, auto wanted) {
    if (count > 0)
      r.error(check, name,
              "{} {} holds {} of {} values {}, the first at {}; the file is damaged or training "
              "diverged: copy it again or take an earlier checkpoint",
              name, to_string(t.shape), count, t.shape.count(), what,
              position(t, v.bad_block, wanted));
  };
  bad("tensor.nan", "that are NaN", v.nans, [](float f) { return std::isnan(f); });
  bad("tensor.inf", "that are infinite", v.infinities, [](float f) { return std::isinf(f); });
  // Packed weights have padding and an order of their own.
  if (!v.finite() || name.starts_with("packed.")) return;
  if (v.largest == 0.f && t.shape.rank() >= 2) {
    // Adaptive norms begin as zeros, so an untrained pi0.5 has such matrices; so does B of a LoRA,
    // which stays so where no loss depends on it.
    const bool begins_so = name.ends_with(".dense.weight") ||
                           name.find(".lora_B") != std::string::npos || name.ends_with(".lora_b");
    r.add(begins_so ? Finding::Level::warning : Finding::Level::error, "tensor.zero", name,
          "{} {} holds only zeros; was it never trained or never copied?", name,
          to_string(t.shape));
  }
  judge_outlier(t, v, name, r);
}

}  // namespace

void check_values(const Examined& m, Report& r) {
  std::vector<HostTensor> tensors;
  for (const auto& file : m.files)
    for (const HostTensor& t : file->tensors())
      if (t.dtype == DType::f32 || t.dtype == DType::bf16 || t.dtype == DType::f16)
        tensors.push_back(t);
  const std::vector<Magnitudes> all = measure(tensors, m.options.threads, Scan::whole);
  r.tensors = std::ssize(tensors);
  for (size_t t = 0; t < tensors.size(); ++t) {
    judge_values(tensors[t], all[t], r);
    r.values += tensors[t].shape.count();
  }
}

}  // namespace tendon
