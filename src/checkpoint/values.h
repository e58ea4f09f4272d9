// Every value of float tensors, read once: what loading refuses and `tendon validate` judges.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace tendon {

// No weight of a trained network is as large; a flipped bit of an exponent makes more.
constexpr float kWeightMagnitudeMax = 1e4f;

// What the values of a tensor, or of a part of it, are like. Positions are row-major and those of
// blocks: the value is found from there on.
struct Magnitudes {
  int64_t nans = 0, infinities = 0, bad_block = -1, largest_block = 0;
  float largest = 0;   // magnitude, of the finite ones
  double squares = 0;  // sum, of the finite ones

  bool finite() const { return bad_block < 0; }
};

// largest: all but `squares`, as loading needs. whole: pages of mapped tensors are given back once
// read.
enum class Scan { largest, whole };

// Of each tensor: F32, BF16 or F16.
std::vector<Magnitudes> measure(std::span<const HostTensor> tensors, int threads, Scan scan);

// The position of the first value from `block` on that is wanted; the last one where none is.
template <class Wanted>
int64_t find_value(const HostTensor& t, int64_t block, Wanted wanted) {
  int64_t at = block;
  while (at + 1 < t.shape.count() && !wanted(element(t, at))) ++at;
  return at;
}

// Throws Error(Fault::checkpoint) for a value that is not finite or beyond kWeightMagnitudeMax.
void check_values(const HostTensor& t, const std::string& file);

}  // namespace tendon
