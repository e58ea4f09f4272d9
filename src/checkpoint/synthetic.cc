#include "checkpoint/synthetic.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tensor/bf16.h"
#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon {
namespace {

constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;

uint64_t fnv1a64(std::string_view text) {
  uint64_t h = 0xCBF29CE484222325u;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return h;
}

struct Rule {
  double offset = 0, scale = 1;
};

// First matching row wins; "ends with" compares the last two dot-separated parts.
Rule rule(const std::string& name, const Shape& shape, const SyntheticOptions& o) {
  const int64_t fan_in = shape.rank() > 1 ? shape.count() / shape[0] : 1;
  const double base = std::sqrt(3.0 / static_cast<double>(fan_in));
  const size_t last = name.rfind('.'), before = last == 0 ? last : name.rfind('.', last - 1);
  const std::string end = before == std::string::npos ? name : name.substr(before + 1);
  const bool vision = name.starts_with("paligemma_with_expert.paligemma.model.vision_tower.");
  const bool expert = name.starts_with("paligemma_with_expert.gemma_expert.");
  const int64_t depth = vision ? o.vision_depth : expert ? o.expert_depth : o.vlm_depth;
  const double residual = std::sqrt(2.0 * static_cast<double>(depth));

  if (end == "dense.bias") return {0, 0.8};
  if (end.ends_with(".bias")) return {0, 0.1};
  if (end == "layer_norm1.weight" || end == "layer_norm2.weight" || end == "post_layernorm.weight")
    return {1, 0.1};
  if (shape.rank() == 1) return {0, 0.1};
  if (end == "position_embedding.weight") return {0, 0.5};
  if (end == "dense.weight") return {0, 2.0 * base};
  if (end == "q_proj.weight" || end == "k_proj.weight") return {0, 1.5 * base};
  if (end == "o_proj.weight" && expert) return {0, 4.0 * base / residual};
  if (end == "out_proj.weight" || end == "o_proj.weight") return {0, 3.0 * base / residual};
  if (end == "fc2.weight" || end == "down_proj.weight") return {0, 1.5 * base / residual};
  if (name == "action_in_proj.weight") return {0, 0.5 * base};
  if (name == "state_proj.weight") return {0, 2.0 * base};
  return {0, base};
}

struct Stream {
  uint64_t key;
  float offset, scale;
};

inline float element(const Stream& s, uint64_t i) {
  uint64_t z = s.key + (i + 1) * kGamma;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z = z ^ (z >> 31);
  const float r = static_cast<float>(static_cast<int32_t>(z >> 40)) * 0x1p-23f - 1.f;
  return s.offset + s.scale * r;
}

// The loops are compiled for several instruction sets; contraction is off, so all give the same
// bits.
#define TENDON_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))

TENDON_CLONES void fill_f32(const Stream& s, uint64_t first, uint64_t last, float* to) {
  for (uint64_t i = first; i < last; ++i) to[i] = element(s, i);
}

TENDON_CLONES void fill_bf16(const Stream& s, uint64_t first, uint64_t last, uint16_t* to) {
  for (uint64_t i = first; i < last; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(element(s, i));  // never NaN
    to[i] = static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
  }
}

// Zeroed memory straight from the kernel, in huge pages where it has them: page faults would take
// longer than the arithmetic.
std::shared_ptr<std::byte> allocate(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ensure(data != MAP_FAILED, Fault::memory, "no memory for a synthetic tensor of {} bytes", bytes);
  if (bytes >= (2u << 20)) madvise(data, bytes, MADV_HUGEPAGE);
  return {static_cast<std::byte*>(data), [bytes](std::byte* p) { munmap(p, bytes); }};
}

class SyntheticWeights final : public WeightSource {
 public:
  SyntheticWeights(bool pi05, const SyntheticOptions& options) : options_(options) {
    description_ = fmt::format("synthetic:{} (seed {})", pi05 ? "pi05" : "pi0", options.seed);
  }
  HostTensor get(const std::string& name, const Shape& shape) override {
    return synthetic_tensor(name, shape, options_);
  }

 private:
  SyntheticOptions options_;
};

}  // namespace

HostTensor synthetic_tensor(const std::string& name, const Shape& shape,
                            const SyntheticOptions& options) {
  const bool bf16 = options.dtype == DType::bf16;
  ensure(bf16 || options.dtype == DType::f32, Fault::usage,
         "synthetic weights are f32 or bf16 in memory, not {}", tendon::name(options.dtype));
  const Rule r = rule(name, shape, options);
  const Stream stream{fnv1a64(name) ^ (options.seed * kGamma), static_cast<float>(r.offset),
                      static_cast<float>(r.scale)};
  const size_t bytes = static_cast<size_t>(shape.count() * byte_size(options.dtype));
  const std::shared_ptr<std::byte> data = allocate(bytes);
  const int threads = options.threads > 0 ? options.threads : hardware_threads();
  const int64_t count = shape.count();
  parallel_for(count, count < (1 << 16) ? 1 : threads, [&](int64_t first, int64_t last) {
    const auto a = static_cast<uint64_t>(first), b = static_cast<uint64_t>(last);
    if (bf16) return fill_bf16(stream, a, b, reinterpret_cast<uint16_t*>(data.get()));
    float* values = reinterpret_cast<float*>(data.get());
    fill_f32(stream, a, b, values);
    for (uint64_t i = a; options.round_bf16 && i < b; ++i)
      values[i] = from_bf16(to_bf16(values[i]));
  });
  return {name, options.dtype, shape, {data.get(), bytes}, data};
}

std::unique_ptr<WeightSource> synthetic_weights(bool pi05, const SyntheticOptions& options) {
  return std::make_unique<SyntheticWeights>(pi05, options);
}

}  // namespace tendon
