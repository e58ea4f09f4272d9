// The JSON header of a safetensors file as plain data.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace tendon {

struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  uint64_t begin = 0, end = 0;  // bytes, from the end of the header
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in the order of the header
  std::map<std::string, std::string> metadata;
};

// Throws Error(Fault::checkpoint) naming the tensor or the byte. `file` is for messages.
SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file);

}  // namespace tendon
