#include "backends/cuda/products.h"

#include <dlfcn.h>

#include <vector>

#include "tensor/check.h"

namespace tendon::cuda {

// Its functions by name; their types are the header's.
struct BlasLibrary {
  explicit BlasLibrary(const std::string& name);
  ~BlasLibrary() { dlclose(file); }
  BlasLibrary(const BlasLibrary&) = delete;
  BlasLibrary& operator=(const BlasLibrary&) = delete;

  void* file = nullptr;
  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtDestroy) destroy = nullptr;
  decltype(&cublasLtGetStatusString) status_text = nullptr;
  decltype(&cublasLtMatmulDescCreate) new_product = nullptr;
  decltype(&cublasLtMatmulDescDestroy) drop_product = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_product = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) new_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) drop_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) new_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) drop_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose = nullptr;
  decltype(&cublasLtMatmul) multiply = nullptr;

  void check(cublasStatus_t status, std::string_view what) const {
    ensure(status == CUBLAS_STATUS_SUCCESS,
           status == CUBLAS_STATUS_ALLOC_FAILED ? Fault::memory : Fault::backend,
           "[cuda] cuBLASLt, {}: {}", what, status_text(status));
  }
};

namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA recommends for Hopper

void* open_library(const std::string& file) {
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

template <class Function>
void find(void* library, const char* name, Function*& to) {
  to = reinterpret_cast<Function*>(dlsym(library, name));
  ensure(to, Fault::backend, "cuBLASLt has no function {}", name);
}

}  // namespace

BlasLibrary::BlasLibrary(const std::string& name) : file(open_library(name)) {
  find(file, "cublasLtCreate", create);
  find(file, "cublasLtDestroy", destroy);
  find(file, "cublasLtGetStatusString", status_text);
  find(file, "cublasLtMatmulDescCreate", new_product);
  find(file, "cublasLtMatmulDescDestroy", drop_product);
  find(file, "cublasLtMatmulDescSetAttribute", set_product);
  find(file, "cublasLtMatrixLayoutCreate", new_layout);
  find(file, "cublasLtMatrixLayoutDestroy", drop_layout);
  find(file, "cublasLtMatmulPreferenceCreate", new_preference);
  find(file, "cublasLtMatmulPreferenceDestroy", drop_preference);
  find(file, "cublasLtMatmulPreferenceSetAttribute", set_preference);
  find(file, "cublasLtMatmulAlgoGetHeuristic", choose);
  find(file, "cublasLtMatmul", multiply);
}

// A product's description and the kernel chosen for it: 2 * rows * outputs * inputs FLOPs. The
// library is column-major: to it, our y is [outputs, rows], our weight [inputs, outputs] and to be
// transposed, our x [inputs, rows]. Sums are in full float; TF32 would round f32 operands to 10
// bits.
struct Products::Plan {
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

Products::Products(const Device& device, const std::string& library)
    : device_(device),
      library_(std::make_unique<BlasLibrary>(library)),
      workspace_(kWorkspaceBytes) {
  library_->check(library_->create(&session_), "opening it");
}

Products::~Products() {
  plans_.clear();
  library_->destroy(session_);
}

Products::Plan& Products::plan(const Product& p) {
  std::unique_ptr<Plan>& known = plans_[p];
  if (!known) known = std::make_unique<Plan>(*library_, session_, p);
  return *known;
}

bool Products::has(const Product& p) { return plan(p).possible; }

void Products::run(const Product& p, const Operands& on) {
  Plan& made = plan(p);
  ensure(made.possible, Fault::backend, "[cuda] cuBLASLt has no kernel for [{}, {}] x [{}, {}] {}",
         p.rows, p.inputs, p.outputs, p.inputs, p.bf16 ? "bf16" : "f32");
  // Part of the description, though each call has its own.
  if (p.bias) made.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, on.bias);
  // y = one * W x + residual * C; with 0 the library does not read C.
  const float one = 1, residual = p.residual ? 1 : 0;
  library_->check(library_->multiply(session_, made.product, &one, on.weight, made.weight, on.x,
                                     made.x, &residual, p.residual ? on.residual : on.y, made.y,
                                     on.y, made.y, &made.choice.algo, workspace_.data(),
                                     static_cast<size_t>(workspace_.bytes()), device_.stream()),
                  "a product");
}

}  // namespace tendon::cuda
