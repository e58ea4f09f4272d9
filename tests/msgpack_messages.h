// Recorded messages, and what a refusal says.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <string>
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

inline std::string hex(std::span<const uint8_t> bytes) {
  std::string out;
  for (const uint8_t byte : bytes) {
    out += "0123456789abcdef"[byte >> 4];
    out += "0123456789abcdef"[byte & 15];
  }
  return out;
}

// What the refusal says, or what was accepted.
inline std::string refusal(std::span<const uint8_t> message, const Limits& limits = {}) {
  try {
    return "accepted " + describe(decode(message, limits));
  } catch (const Error& error) {
    EXPECT_EQ(error.fault(), Fault::input) << error.what();
    return error.what();
  }
}

}  // namespace tendon::msgpack
