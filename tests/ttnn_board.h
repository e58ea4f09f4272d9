// A TTNN device on a test's bench: tensors up and down, and calls that must succeed.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backends/ttnn/fake_device.h"
#include "backends/ttnn/tiles.h"
#include "backends/ttnn/tt_api.h"

namespace tendon::tt {

inline size_t size_of(const Dims& dims) { return static_cast<size_t>(count(dims)); }

class Board {
 public:
  explicit Board(const FakeOptions& options = {}) : api_(open_fake_device(options)) {}
  explicit Board(std::unique_ptr<TtApi> api) : api_(std::move(api)) {}
  TtApi& api() { return *api_; }
  FakeUse use() const { return fake_use(*api_); }

  TensorId put(const Spec& spec, const std::vector<float>& values) {
    const Reply reply = api_->upload(spec, pack(spec, values));
    EXPECT_EQ(reply.status, Status::ok) << api_->last_error();
    return reply.outputs.empty() ? 0 : reply.outputs[0].id;
  }
  TensorId put(const Dims& dims, float value) {
    return put({dims}, std::vector<float>(size_of(dims), value));
  }
  std::vector<Output> run_all(const Request& request) {
    const Reply reply = api_->run(request);
    EXPECT_EQ(reply.status, Status::ok) << api_->last_error();
    return reply.status == Status::ok ? reply.outputs : std::vector<Output>(3);
  }
  Output run(const Request& request) { return run_all(request)[0]; }
  std::vector<float> get(const Output& x) {
    std::vector<float> values(size_of(x.spec.dims));
    EXPECT_EQ(api_->download(x.id, values), Status::ok) << api_->last_error();
    return values;
  }

  // What a refused request says; fails the test when it is accepted or refused otherwise.
  std::string refusal(const Request& request, Status expected = Status::illegal) {
    const Reply reply = api_->run(request);
    EXPECT_EQ(reply.status, expected) << name(reply.status) << ": " << api_->last_error();
    EXPECT_TRUE(reply.outputs.empty());
    return api_->last_error();
  }

 private:
  std::unique_ptr<TtApi> api_;
};

}  // namespace tendon::tt
