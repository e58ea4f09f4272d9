// What backends share whose matrices lie in the host's memory, row by row in one piece.
#pragma once

#include <algorithm>

#include "ops/kernels.h"

namespace tendon {

struct HostBuffer : Buffer {
  float* values = nullptr;  // set by whoever owns them
};

class HostKernels : public Kernels {
 public:
  Tensor upload(std::span<const float> values, const Shape& shape) override {
    Tensor x = make(shape[0], shape[1]);
    std::ranges::copy(values, row(x, 0));
    return x;
  }

  void download(const Tensor& x, std::span<float> to) override {
    std::copy_n(row(x, 0), to.size(), to.begin());
  }

  // The model asks for these two with actions alone, some thousand values per Euler step: a plain
  // loop will do on every instruction set.
  Tensor add_scaled(const Tensor& x, const Tensor& y, float scale) override {
    Tensor out = make(x.rows(), x.columns());
    for (int64_t i = 0; i < x.shape().count(); ++i)
      row(out, 0)[i] = row(x, 0)[i] + scale * row(y, 0)[i];
    return out;
  }

  Tensor multiply(const Tensor& x, const Tensor& y) override {
    Tensor out = make(x.rows(), x.columns());
    for (int64_t i = 0; i < x.shape().count(); ++i) row(out, 0)[i] = row(x, 0)[i] * row(y, 0)[i];
    return out;
  }

  Tensor concat_rows(std::span<const Tensor> parts) override {
    return concat_by_writing(parts, [&](int64_t r, int64_t c) { return make(r, c); });
  }

  Tensor slice_rows(const Tensor& x, int64_t first, int64_t last) override {
    Tensor out = make(last - first, x.columns());
    std::copy(row(x, first), row(x, last), row(out, 0));
    return out;
  }

  void write_rows(Tensor& to, const Tensor& rows, int64_t first) override {
    std::copy_n(row(rows, 0), rows.shape().count(), row(to, first));
  }

 protected:
  using Kernels::Kernels;
  virtual Tensor make(int64_t rows, int64_t columns) = 0;  // on a HostBuffer, of any values

  static float* row(const Tensor& x, int64_t r) {
    return static_cast<HostBuffer*>(x.buffer())->values + r * x.columns();
  }
};

}  // namespace tendon
