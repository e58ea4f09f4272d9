// Recorded messages, messages of fields, and what a refusal says.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "client/bytes.h"
#include "client/msgpack.h"
#include "tendon/error.h"

namespace tendon::msgpack {

using Kind = Value::Kind;

inline Bytes read_file(const std::string& name) {
  std::ifstream in(TENDON_TEST_PROTOCOL "/" + name, std::ios::binary);
  EXPECT_TRUE(in) << name;
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

// One key and how its value is written.
using Write = std::function<void(Writer&)>;
using Fields = std::vector<std::pair<std::string, Write>>;

inline Write map_of(const Fields& fields) {
  return [=](Writer& to) {
    to.map(std::ssize(fields));
    for (const auto& [key, write] : fields) {
      to.text(key);
      write(to);
    }
  };
}

inline std::string message(const Fields& fields) {
  std::string out;
  Writer to(out);
  map_of(fields)(to);
  return out;
}

inline Write text(std::string value) {
  return [=](Writer& to) { to.text(value); };
}
inline Write number(double value) {
  return [=](Writer& to) { to.number(value); };
}
inline Write integer(int64_t value) {
  return [=](Writer& to) { to.integer(value); };
}
inline Write doubles(std::vector<double> values, std::vector<int64_t> shape) {
  return [=](Writer& to) { to.array(values, shape); };
}
inline Write doubles(std::vector<double> values) {
  const int64_t size = std::ssize(values);
  return doubles(std::move(values), {size});
}
// Every byte is `fill`.
inline Write array(std::string dtype, std::vector<int64_t> shape, size_t bytes, uint8_t fill = 7) {
  return [=](Writer& to) { to.array(dtype, shape, std::vector<uint8_t>(bytes, fill)); };
}

inline std::string hex(std::span<const uint8_t> bytes) {
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

// What the refusal says, or what was accepted.
inline std::string refusal(std::span<const uint8_t> message) {
  try {
    return "accepted " + describe(decode(message));
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::input) << error.what();
    return error.what();
  }
}

}  // namespace tendon::msgpack
