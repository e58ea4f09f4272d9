// Kernels::concat_rows by write_rows, for backends whose matrices lie in one piece.
#pragma once

#include <span>

#include "ops/kernels.h"

namespace tendon {

// `make(rows, columns)` gives a matrix of the backend.
template <class Make>
Tensor concat_by_writing(Kernels& kernels, std::span<const Tensor> parts, const Make& make) {
  int64_t rows = 0;
  for (const Tensor& part : parts) rows += part.rows();
  Tensor out = make(rows, parts[0].columns());
  rows = 0;
  for (const Tensor& part : parts) {
    kernels.write_rows(out, part, rows);
    rows += part.rows();
  }
  return out;
}

}  // namespace tendon
