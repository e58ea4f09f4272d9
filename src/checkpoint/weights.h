#pragma once
#include <optional>
#include <memory>
#include <string>
#include <vector>
#include "tensor/tensor.h"
namespace tendon {
class WeightSource { public: virtual ~WeightSource() = default;
  virtual bool has(std::string_view canonical_name) const = 0;
  virtual std::optional<Shape> shape_of(std::string_view n) const = 0;
  virtual HostTensor get(const std::string& canonical_name, const Shape& shape) = 0;
  virtual std::vector<std::string> unused() const = 0;
  virtual std::string description() const = 0; };
}
