#include "tensor/random.h"

#include <cmath>

namespace tendon {
namespace {

constexpr double kPi = 3.14159265358979323846;

// sin(2 pi u) for u in [0, 1): folded to |x| <= pi / 2, then the Taylor series to x^21, whose error
// is below 1e-16. Only + - * /, so every IEEE machine agrees.
double sin_turn(double u) {
  double x = u < 0.25 ? u : u < 0.75 ? 0.5 - u : u - 1.0;
  x *= 2.0 * kPi;
  const double x2 = x * x;
  double sum = 1.0;
  for (int k = 10; k >= 1; --k) sum = 1.0 - x2 / (2.0 * k * (2.0 * k + 1.0)) * sum;
  return x * sum;
}

// ln(v) for v in (0, 1]: v = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m-1)/(m+1)).
double natural_log(double v) {
  int e = 0;
  double m = std::frexp(v, &e);
  if (m < 0.70710678118654752440) {
    m *= 2.0;
    --e;
  }
  const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
  double sum = 0.0;
  for (int k = 25; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
  return 2.0 * s * sum + e * 0.69314718055994530942;
}

}  // namespace

PhiloxBlock philox(PhiloxBlock c, uint64_t key) {
  auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.word[0], b = uint64_t{0xCD9E8D57u} * c.word[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

void normal_noise(uint64_t seed, uint64_t stream, std::span<float> to) {
  for (size_t i = 0; i < to.size(); i += 4) {
    const uint64_t block = i / 4;
    const PhiloxBlock bits =
        philox({{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                 static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)}},
               seed);
    for (size_t half = 0; half < 2; ++half) {
      // u1 in (0, 1], so that the logarithm is finite.
      const double u1 = (static_cast<double>(bits.word[2 * half]) + 1.0) * 0x1p-32;
      const double u2 = static_cast<double>(bits.word[2 * half + 1]) * 0x1p-32;
      const double radius = std::sqrt(-2.0 * natural_log(u1));
      const double quarter = u2 + 0.25;
      const size_t at = i + 2 * half;
      if (at < to.size())
        to[at] = static_cast<float>(radius * sin_turn(quarter < 1.0 ? quarter : quarter - 1.0));
      if (at + 1 < to.size()) to[at + 1] = static_cast<float>(radius * sin_turn(u2));
    }
  }
}

}  // namespace tendon
