// Every value of the weights, read once.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "checkpoint/weights.h"
#include "tensor/check.h"
#include "tensor/parallel.h"
#include "validate/health_checks.h"

namespace tendon {
namespace {

// A healthy weight matrix has its largest value within a few dozen of its root mean square, a bias
// or a norm may have a few strong channels. A flipped exponent bit gives 2^16 and more.
constexpr double kMatrixOutlier = 100, kVectorOutlier = 1000;

// Row-major values that a thread reads in one go: small enough for its first cache.
constexpr int64_t kBlock = 4096;
constexpr int64_t kPieceBlocks = 512;

// What the values of a tensor, or of a piece of it, are like. Positions are multiples of kBlock.
struct Magnitudes {
  int64_t nans = 0, infinities = 0, bad_block = -1, largest_block = 0;
  float largest = 0;  // magnitude, of the finite ones
  double squares = 0;

  void add(const Magnitudes& more) {
    if (bad_block < 0) bad_block = more.bad_block;
    if (more.largest > largest) largest_block = more.largest_block;
    largest = std::max(largest, more.largest);
    nans += more.nans;
    infinities += more.infinities;
    squares += more.squares;
  }
};

Magnitudes measure(std::span<const float> block, int64_t position) {
  Magnitudes v{.largest_block = position};
  constexpr size_t kLanes = 8;  // independent sums, which the compiler keeps in vectors
  std::array<double, kLanes> squares{};
  int32_t largest = 0;  // without its sign bit, a float is ordered as an integer
  const auto magnitude = [](float f) { return std::bit_cast<int32_t>(f) & 0x7fffffff; };
  size_t i = 0;
  for (; i + kLanes <= block.size(); i += kLanes)
    for (size_t l = 0; l < kLanes; ++l) {
      const float f = block[i + l];
      largest = std::max(largest, magnitude(f));
      squares[l] += static_cast<double>(f) * static_cast<double>(f);
    }
  for (; i < block.size(); ++i) {
    largest = std::max(largest, magnitude(block[i]));
    squares[0] += static_cast<double>(block[i]) * static_cast<double>(block[i]);
  }
  if (std::isfinite(std::bit_cast<float>(largest))) {
    v.largest = std::bit_cast<float>(largest);
    for (const double s : squares) v.squares += s;
    return v;
  }
  v.bad_block = position;
  for (const float f : block) {
    v.nans += std::isnan(f);
    v.infinities += std::isinf(f);
    if (!std::isfinite(f)) continue;
    v.largest = std::max(v.largest, std::abs(f));
    v.squares += static_cast<double>(f) * static_cast<double>(f);
  }
  return v;
}

// Consecutive values of one tensor: [blocks, kBlock], or the rest as [1, fewer].
struct Piece {
  size_t tensor = 0;
  int64_t position = 0;
  HostTensor rows;
};

std::vector<Piece> cut(const std::vector<HostTensor>& tensors) {
  std::vector<Piece> pieces;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const int64_t count = tensors[t].shape.count(), size = byte_size(tensors[t].dtype);
    for (int64_t at = 0; at < count;) {
      const int64_t blocks = std::min(kPieceBlocks, (count - at) / kBlock);
      const Shape shape = blocks > 0 ? Shape{blocks, kBlock} : Shape{1, count - at};
      Piece piece{t, at, tensors[t]};
      piece.rows.shape = shape;
      piece.rows.bytes = tensors[t].bytes.subspan(static_cast<size_t>(at * size),
                                                  static_cast<size_t>(shape.count() * size));
      pieces.push_back(std::move(piece));
      at += shape.count();
    }
  }
  return pieces;
}

Magnitudes measure(const Piece& piece) {
  std::array<float, kBlock> room{};
  const auto columns = static_cast<size_t>(piece.rows.shape[1]);
  const std::span<float> block = std::span(room).first(columns);
  Magnitudes v{.largest_block = piece.position};
  for (int64_t row = 0; row < piece.rows.shape[0]; ++row) {
    convert_row_to_f32(piece.rows, row, block);
    v.add(measure(block, piece.position + row * kBlock));
  }
  forget_pages(piece.rows);
  return v;
}

// "[3, 17]" of the first value from `block` on that is wanted.
template <class Wanted>
std::string position(const HostTensor& t, int64_t block, Wanted wanted) {
  int64_t at = block;
  while (at + 1 < t.shape.count() && !wanted(element(t, at))) ++at;
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
        fmt::format("{} {}: the value at {} has magnitude {:.4g}, but the root mean square of the "
                    "others is {:.4g}, expected at most {} times that; a flipped bit? compare the "
                    "file's checksum with the source's",
                    name, to_string(t.shape), position(t, v.largest_block, is_largest), v.largest,
                    rms, limit));
}

void judge_values(const HostTensor& t, const Magnitudes& v, Report& r) {
  const std::string name = canonical_name(t.name);
  const auto bad = [&](const char* check, const char* what, int64_t count, auto wanted) {
    if (count > 0)
      r.error(check, name,
              fmt::format("{} {} holds {} of {} values {}, the first at {}; the file is damaged or "
                          "training diverged: copy it again or take an earlier checkpoint",
                          name, to_string(t.shape), count, t.shape.count(), what,
                          position(t, v.bad_block, wanted)));
  };
  bad("tensor.nan", "that are NaN", v.nans, [](float f) { return std::isnan(f); });
  bad("tensor.inf", "that are infinite", v.infinities, [](float f) { return std::isinf(f); });
  // Packed weights have padding and an order of their own.
  if (v.bad_block >= 0 || name.starts_with("packed.")) return;
  if (v.largest == 0.f && t.shape.rank() >= 2) {
    // Adaptive norms begin as zeros, so an untrained pi0.5 has such matrices.
    const bool begins_so = name.ends_with(".dense.weight");
    r.add(begins_so ? Finding::Level::warning : Finding::Level::error, "tensor.zero", name,
          fmt::format("{} {} holds only zeros; was it never trained or never copied?", name,
                      to_string(t.shape)));
  }
  judge_outlier(t, v, name, r);
}

}  // namespace

Health check_values(const std::vector<std::shared_ptr<const SafetensorsFile>>& files, int threads) {
  std::vector<HostTensor> tensors;
  for (const auto& file : files)
    for (const HostTensor& t : file->tensors())
      if (t.dtype == DType::f32 || t.dtype == DType::bf16 || t.dtype == DType::f16)
        tensors.push_back(t);
  const std::vector<Piece> pieces = cut(tensors);
  std::vector<Magnitudes> of_pieces(pieces.size());
  parallel_for(std::ssize(pieces), threads > 0 ? threads : hardware_threads(),
               [&](int64_t first, int64_t last) {
                 for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i)
                   of_pieces[i] = measure(pieces[i]);
               });
  std::vector<Magnitudes> of_tensors(tensors.size());
  for (size_t i = 0; i < pieces.size(); ++i) of_tensors[pieces[i].tensor].add(of_pieces[i]);
  Report r;
  Health h{.tensors = std::ssize(tensors)};
  for (size_t t = 0; t < tensors.size(); ++t) {
    judge_values(tensors[t], of_tensors[t], r);
    h.values += tensors[t].shape.count();
  }
  h.findings = std::move(r.findings);
  return h;
}

}  // namespace tendon
