#include "checkpoint/values.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "tensor/check.h"
#include "tensor/parallel.h"

namespace tendon {
namespace {

// Row-major values that a thread reads in one go: small enough for its first cache.
constexpr int64_t kBlockValues = 4096;
constexpr int64_t kPieceValues = 512 * kBlockValues;  // what a thread takes at a time

void add(Magnitudes& to, const Magnitudes& more) {
  if (to.bad_block < 0) to.bad_block = more.bad_block;
  if (more.largest > to.largest) to.largest_block = more.largest_block;
  to.largest = std::max(to.largest, more.largest);
  to.nans += more.nans;
  to.infinities += more.infinities;
  to.squares += more.squares;
}

template <Scan kScan>
Magnitudes measure_block(std::span<const float> block, int64_t position) {
  Magnitudes v{.largest_block = position};
  constexpr size_t kLanes = 16;  // independent sums, which the compiler keeps in vectors
  std::array<float, kLanes> squares{};
  std::array<int32_t, kLanes> largest{};  // without its sign bit, a float is ordered as an integer
  const size_t whole = block.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t l = 0; l < kLanes; ++l) {
      const float f = block[i + l];
      largest[l] = std::max(largest[l], std::bit_cast<int32_t>(f) & 0x7fffffff);
      if constexpr (kScan == Scan::whole) squares[l] += f * f;
    }
  const float most = std::bit_cast<float>(*std::ranges::max_element(largest));
  // Where squares of floats may overflow or vanish, and of the rest: in double, one by one.
  const bool plain = most >= 1e-15f && most <= kWeightMagnitudeMax;
  if (plain) {
    v.largest = most;
    for (const float s : squares) v.squares += static_cast<double>(s);
  }
  for (const float f : block.subspan(plain ? whole : 0)) {
    v.nans += std::isnan(f);
    v.infinities += std::isinf(f);
    if (!std::isfinite(f)) continue;
    v.largest = std::max(v.largest, std::abs(f));
    v.squares += static_cast<double>(f) * static_cast<double>(f);
  }
  if (v.nans + v.infinities > 0) v.bad_block = position;
  return v;
}

// `count` values from `first` on, as a vector.
HostTensor part(const HostTensor& t, int64_t first, int64_t count) {
  const int64_t size = byte_size(t.dtype);
  const auto bytes =
      t.bytes.subspan(static_cast<size_t>(first * size), static_cast<size_t>(count * size));
  return {.dtype = t.dtype, .shape = {count}, .bytes = bytes, .mapped = t.mapped};
}

template <Scan kScan>
Magnitudes measure_part(const HostTensor& t, int64_t first, int64_t last) {
  std::array<float, kBlockValues> room{};
  Magnitudes v{.largest_block = first};
  for (int64_t at = first; at < last; at += kBlockValues) {
    const int64_t count = std::min(kBlockValues, last - at);
    const std::span<float> block = std::span(room).first(static_cast<size_t>(count));
    convert_to_f32(part(t, at, count), block);
    add(v, measure_block<kScan>(block, at));
  }
  return v;
}

}  // namespace

std::vector<Magnitudes> measure(std::span<const HostTensor> tensors, int threads, Scan scan) {
  struct Piece {
    size_t tensor = 0;
    int64_t first = 0, last = 0;
    Magnitudes values = {};
  };
  std::vector<Piece> pieces;
  for (size_t t = 0; t < tensors.size(); ++t)
    for (int64_t at = 0, count = tensors[t].shape.count(); at < count; at += kPieceValues)
      pieces.push_back({t, at, std::min(at + kPieceValues, count)});
  const auto measure_pieces = [&](int64_t first, int64_t last) {
    for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
      Piece& p = pieces[i];
      const HostTensor& t = tensors[p.tensor];
      p.values = scan == Scan::whole ? measure_part<Scan::whole>(t, p.first, p.last)
                                     : measure_part<Scan::largest>(t, p.first, p.last);
      if (scan == Scan::whole) forget_pages(part(t, p.first, p.last - p.first));
    }
  };
  parallel_for(std::ssize(pieces), threads > 0 ? threads : hardware_threads(), measure_pieces);
  std::vector<Magnitudes> all(tensors.size());
  for (const Piece& p : pieces) add(all[p.tensor], p.values);
  return all;
}

void check_values(const HostTensor& t, const std::string& file) {
  const Magnitudes v = measure({&t, 1}, 0, Scan::largest).front();
  if (v.finite() && v.largest <= kWeightMagnitudeMax) return;
  // Written so that a NaN is found too.
  const int64_t at =
      find_value(t, 0, [](float f) { return !(std::abs(f) <= kWeightMagnitudeMax); });
  fail(Fault::checkpoint,
       "{}: value {} of {} is {}; weights are finite and at most {}: the file is damaged or "
       "training diverged, `tendon validate` says more",
       file, at, t.name, element(t, at), kWeightMagnitudeMax);
}

}  // namespace tendon
