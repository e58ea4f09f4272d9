// Noise that is the same on every machine: a function of seed, stream and position alone.
#pragma once

#include <cstdint>
#include <span>

namespace tendon {

// Fills `to` with independent values from N(0, 1). Counter-based: Philox4x32-10 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by `seed`, counter (position, stream),
// and the Box-Muller transform evaluated with own polynomials in double, so that no library's
// rounding can change a byte. |value| < 6.7.
void normal_noise(uint64_t seed, uint64_t stream, std::span<float> to);

// The generator itself: 128 random bits for a counter and a key.
struct PhiloxBlock {
  uint32_t word[4];
};
PhiloxBlock philox(PhiloxBlock counter, uint64_t key);

}  // namespace tendon
