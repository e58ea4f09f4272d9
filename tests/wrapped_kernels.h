// The reference backend with whatever a test overrides.
#pragma once

#include <memory>
#include <optional>

#include "backends/reference/reference.h"
#include "ops/kernels.h"

namespace tendon {

class WrappedKernels : public Kernels {
 public:
  explicit WrappedKernels(BackendTraits traits = {.name = "wrapped"})
      : Kernels(std::move(traits)) {}
  std::shared_ptr<const PreparedWeight> prepare(const WeightParts& p) override {
    return all_->prepare(p);
  }
  Tensor upload(std::span<const float> v, const Shape& s) override { return all_->upload(v, s); }
  void download(const Tensor& x, std::span<float> to) override { all_->download(x, to); }
  Tensor linear(const Tensor& x, const Weight& w, const Epilogue& e) override {
    return all_->linear(x, w, e);
  }
  Tensor gated_linear(const Tensor& x, const Weight& w) override {
    return all_->gated_linear(x, w);
  }
  Tensor layer_norm(const Tensor& x, const Tensor& s, const Tensor& t) override {
    return all_->layer_norm(x, s, t);
  }
  Tensor rms_norm(const Tensor& x, const Tensor& s, const Tensor& t) override {
    return all_->rms_norm(x, s, t);
  }
  Qkv qkv(const Tensor& x, const Weight& w, const Heads& h, std::optional<int64_t> p) override {
    return all_->qkv(x, w, h, p);
  }
  Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& h,
                   const Visibility& visible) override {
    return all_->attention(q, k, v, h, visible);
  }
  Tensor embed(const Weight& t, std::span<const int32_t> ids, float s) override {
    return all_->embed(t, ids, s);
  }
  Tensor add_scaled(const Tensor& x, const Tensor& y, float s) override {
    return all_->add_scaled(x, y, s);
  }
  Tensor multiply(const Tensor& x, const Tensor& y) override { return all_->multiply(x, y); }
  Tensor concat_rows(std::span<const Tensor> parts) override { return all_->concat_rows(parts); }
  Tensor slice_rows(const Tensor& x, int64_t a, int64_t b) override {
    return all_->slice_rows(x, a, b);
  }
  void write_rows(Tensor& to, const Tensor& rows, int64_t first) override {
    all_->write_rows(to, rows, first);
  }

 private:
  std::unique_ptr<Kernels> all_ = make_reference_backend();
};

}  // namespace tendon
