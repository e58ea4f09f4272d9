// Matrix products by cuBLASLt, which is found at run time: the program starts without it.
#pragma once

#include <cublasLt.h>
#include <dlfcn.h>

#include <compare>
#include <map>
#include <string>
#include <vector>

#include "backends/cuda/device.h"
#include "tensor/check.h"

namespace tendon::cuda {

// y [rows, outputs] = x [rows, inputs] W [outputs, inputs] transposed, and what the library can do
// in the same pass: + bias [outputs], + residual [rows, outputs], or bias, then tanh-GELU.
struct Product {
  int64_t rows = 0, outputs = 0, inputs = 0;
  bool bf16 = false;  // x and W; sums and y are float always
  bool bias = false, residual = false, gelu = false;
  // NOLINTNEXTLINE: clang-tidy takes the 0 that an order is compared with for a pointer
  auto operator<=>(const Product&) const = default;
};

struct Operands {
  const void *x = nullptr, *weight = nullptr;
  const float *bias = nullptr, *residual = nullptr;
  float* y = nullptr;
};

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA recommends for Hopper

inline void* open_library(const std::string& file) {
  std::vector<std::string> names = {file};
  if (file.empty())  // where the loader looks, then where it was when this was built
    names = {"libcublasLt.so.13", "libcublasLt.so.12", TENDON_CUDA_FOLDER "/libcublasLt.so.13",
             TENDON_CUDA_FOLDER "/libcublasLt.so.12"};
  std::string said;
  for (const std::string& name : names) {
    if (void* opened = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return opened;
    if (said.empty()) said = dlerror();
  }
  fail(Fault::backend, "the cuda backend needs cuBLASLt of CUDA 12 or 13: {}", said);
}

inline void* address_of(void* library, const char* function) {
  void* address = dlsym(library, function);
  ensure(address, Fault::backend, "cuBLASLt has no function {}", function);
  return address;
}

// NOLINTBEGIN(bugprone-macro-parentheses): a member and a name have none.
#define TENDON_BLAS(name, function) \
  decltype(&function) name = reinterpret_cast<decltype(&function)>(address_of(file, #function))
// NOLINTEND(bugprone-macro-parentheses)

// Its functions; their types are the header's.
struct BlasLibrary {
  explicit BlasLibrary(const std::string& name) : file(open_library(name)) {}
  ~BlasLibrary() { dlclose(file); }
  BlasLibrary(const BlasLibrary&) = delete;
  BlasLibrary& operator=(const BlasLibrary&) = delete;

  void* file;
  TENDON_BLAS(create, cublasLtCreate);
  TENDON_BLAS(destroy, cublasLtDestroy);
  TENDON_BLAS(status_text, cublasLtGetStatusString);
  TENDON_BLAS(new_product, cublasLtMatmulDescCreate);
  TENDON_BLAS(drop_product, cublasLtMatmulDescDestroy);
  TENDON_BLAS(set_product, cublasLtMatmulDescSetAttribute);
  TENDON_BLAS(new_layout, cublasLtMatrixLayoutCreate);
  TENDON_BLAS(drop_layout, cublasLtMatrixLayoutDestroy);
  TENDON_BLAS(new_preference, cublasLtMatmulPreferenceCreate);
  TENDON_BLAS(drop_preference, cublasLtMatmulPreferenceDestroy);
  TENDON_BLAS(set_preference, cublasLtMatmulPreferenceSetAttribute);
  TENDON_BLAS(choose, cublasLtMatmulAlgoGetHeuristic);
  TENDON_BLAS(multiply, cublasLtMatmul);

  void check(cublasStatus_t status, std::string_view what) const {
    ensure(status == CUBLAS_STATUS_SUCCESS,
           status == CUBLAS_STATUS_ALLOC_FAILED ? Fault::memory : Fault::backend,
           "[cuda] cuBLASLt, {}: {}", what, status_text(status));
  }
};

// A product's description and the kernel chosen for it: 2 * rows * outputs * inputs FLOPs. The
// library is column-major: to it, our y is [outputs, rows], our weight [inputs, outputs] and to be
// transposed, our x [inputs, rows]. Sums are in full float; TF32 would round f32 operands to 10
// bits.
struct Plan {
  Plan(const BlasLibrary& library, cublasLtHandle_t session, const Product& p) : blas(library) {
    const cudaDataType_t type = p.bf16 ? CUDA_R_16BF : CUDA_R_32F;
    blas.check(blas.new_product(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product");
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    const cublasLtEpilogue_t plain = p.gelu ? CUBLASLT_EPILOGUE_GELU : CUBLASLT_EPILOGUE_DEFAULT,
                             biased = p.gelu ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, p.bias ? biased : plain);
    weight = layout(type, p.inputs, p.outputs);
    x = layout(type, p.inputs, p.rows);
    y = layout(CUDA_R_32F, p.outputs, p.rows);
    cublasLtMatmulPreference_t preference = nullptr;
    blas.check(blas.new_preference(&preference), "a preference");
    const size_t workspace = kWorkspaceBytes;
    blas.check(blas.set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                   sizeof workspace),
               "the size of its workspace");
    int found = 0;
    const cublasStatus_t chosen =
        blas.choose(session, product, weight, x, y, y, preference, 1, &choice, &found);
    blas.drop_preference(preference);
    possible = chosen == CUBLAS_STATUS_SUCCESS && found > 0;
  }
  ~Plan() {
    for (auto* l : {weight, x, y}) blas.drop_layout(l);
    blas.drop_product(product);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  template <class Value>
  void set(cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    blas.check(blas.set_product(product, attribute, &value, sizeof value), "an attribute");
  }
  cublasLtMatrixLayout_t layout(cudaDataType_t type, int64_t rows, int64_t columns) const {
    cublasLtMatrixLayout_t made = nullptr;
    blas.check(blas.new_layout(&made, type, static_cast<uint64_t>(rows),
                               static_cast<uint64_t>(columns), rows),
               "a layout");
    return made;
  }

  const BlasLibrary& blas;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulHeuristicResult_t choice{};
  bool possible = false;
};

class Products {
 public:
  // `library`: a file, or empty for the newest the loader finds. Throws Error(Fault::backend) with
  // what the loader said.
  Products(const Device& device, const std::string& library)
      : device_(device), library_(library), workspace_(make_array(kWorkspaceBytes)) {
    library_.check(library_.create(&session_), "opening it");
  }
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;
  ~Products() {
    plans_.clear();
    library_.destroy(session_);
  }

  // Whether the library has a kernel for it.
  bool has(const Product& p) { return plan(p).possible; }

  void run(const Product& p, const Operands& on) {
    Plan& made = plan(p);
    ensure(made.possible, Fault::backend,
           "[cuda] cuBLASLt has no kernel for [{}, {}] x [{}, {}] {}", p.rows, p.inputs, p.outputs,
           p.inputs, p.bf16 ? "bf16" : "f32");
    // Part of the description, though each call has its own.
    if (p.bias) made.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, on.bias);
    // y = one * W x + residual * C; with 0 the library does not read C.
    const float one = 1, residual = p.residual ? 1 : 0;
    library_.check(library_.multiply(session_, made.product, &one, on.weight, made.weight, on.x,
                                     made.x, &residual, p.residual ? on.residual : on.y, made.y,
                                     on.y, made.y, &made.choice.algo, workspace_.get(),
                                     static_cast<size_t>(kWorkspaceBytes), device_.stream()),
                   "a product");
  }

 private:
  Plan& plan(const Product& p) {
    return plans_.try_emplace(p, library_, session_, p).first->second;
  }

  const Device& device_;
  const BlasLibrary library_;
  cublasLtHandle_t session_ = nullptr;
  DeviceArray workspace_;
  std::map<Product, Plan> plans_;
};

}  // namespace tendon::cuda
