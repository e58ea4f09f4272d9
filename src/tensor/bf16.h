// Half-width floating point formats, to and from float.
#pragma once

#include <bit>
#include <cstdint>

namespace tendon {

// Nearest even; NaN stays NaN (its top mantissa bit is set so that truncation cannot make an Inf).
inline uint16_t to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_bf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// IEEE binary16, subnormals included. The exponent's bias is 15, that of a float 127.
inline float from_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFFu) << 13;
  const uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const bool special = magnitude >= 0x1Fu << 23;  // infinite or NaN
  return std::bit_cast<float>(sign | (special ? magnitude | 0x7F800000u : finite));
}

}  // namespace tendon
