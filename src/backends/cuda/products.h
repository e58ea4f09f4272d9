// Matrix products by cuBLASLt, which is found at run time: the program starts without it.
#pragma once

#include <cublasLt.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "backends/cuda/device.h"

namespace tendon::cuda {

struct BlasLibrary;

// y [rows, outputs] = x [rows, inputs] W [outputs, inputs] transposed, and what the library can do
// in the same pass: + bias [outputs], + residual [rows, outputs], or bias, then tanh-GELU.
struct Product {
  int64_t rows = 0, outputs = 0, inputs = 0;
  bool bf16 = false;  // x and W; sums and y are float always
  bool bias = false, residual = false, gelu = false;
  bool operator<(const Product& o) const {
    return std::tie(rows, outputs, inputs, bf16, bias, residual, gelu) <
           std::tie(o.rows, o.outputs, o.inputs, o.bf16, o.bias, o.residual, o.gelu);
  }
};

struct Operands {
  const void *x = nullptr, *weight = nullptr;
  const float *bias = nullptr, *residual = nullptr;
  float* y = nullptr;
};

class Products {
 public:
  // `library`: a file, or empty for the newest the loader finds. Throws Error(Fault::backend) with
  // what the loader said.
  Products(const Device& device, const std::string& library);
  ~Products();
  // Whether the library has a kernel for it.
  bool has(const Product& p);
  void run(const Product& p, const Operands& on);

 private:
  struct Plan;
  Plan& plan(const Product& p);

  const Device& device_;
  std::unique_ptr<const BlasLibrary> library_;
  cublasLtHandle_t session_ = nullptr;
  DeviceArray workspace_;
  std::map<Product, std::unique_ptr<Plan>> plans_;
};

}  // namespace tendon::cuda
