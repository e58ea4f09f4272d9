// A TTNN device on a test's bench: tensors up and down, and what it refuses.
#pragma once

#include <string>
#include <vector>

#include "backends/ttnn/tt_api.h"
#include "tensor/random.h"
#include "test_files.h"

namespace tendon::tt {

inline size_t size_of(const Dims& dims) { return static_cast<size_t>(count(dims)); }

inline std::vector<float> noise(const Dims& dims, uint64_t seed) {
  std::vector<float> values(size_of(dims));
  normal_noise(seed, 0, values);
  return values;
}

#define EXPECT_SAYS(text, piece) EXPECT_NE(std::string(text).find(piece), std::string::npos) << text

class Board {
 public:
  explicit Board(const FakeOptions& options = {}) : api_(open_fake_device(options)) {}
  explicit Board(std::unique_ptr<TtApi> api) : api_(std::move(api)) {}
  TtApi& api() { return *api_; }

  TensorId put(const Spec& spec, const std::vector<float>& values) {
    return api_->upload(spec, values).id;
  }
  TensorId put(const Dims& dims, float value) {
    return put({dims}, std::vector<float>(size_of(dims), value));
  }
  TensorId zeros(const Spec& spec) { return put(spec, std::vector<float>(size_of(spec.dims))); }
  // `request` of tensors of zeros; 0 where there is no spec.
  Request with_zeros(Request request, const std::vector<std::optional<Spec>>& inputs) {
    for (const auto& x : inputs) request.inputs.push_back(x ? zeros(*x) : 0);
    return request;
  }
  std::vector<Output> run_all(const Request& request) { return api_->run(request); }
  Output run(const Request& request) { return run_all(request).at(0); }
  std::vector<float> get(const Output& x) {
    std::vector<float> values(size_of(x.spec.dims));
    api_->download(x.id, values);
    return values;
  }
  // What a refused request says; fails the test when it is accepted or refused otherwise.
  std::string refusal(const Request& request, Fault expected = Fault::internal) {
    const Error e = refused([&] { api_->run(request); });
    EXPECT_EQ(e.fault(), expected) << e.what();
    return e.what();
  }

 private:
  std::unique_ptr<TtApi> api_;
};

}  // namespace tendon::tt
