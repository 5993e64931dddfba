#pragma once
#include <cmath>
#include <cstdint>
#include <numbers>

#include "mla/core/error.h"

namespace mla {

/// SplitMix64's finaliser (Steele, Lea & Flood 2014): a bijection in which each bit of the input sways all.
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// The natural logarithm by additions, multiplications and divisions alone: the C library's differs in its
/// last bit from one CPU to another. Within 1e-15 of its size or of 1. REQUIRES x > 0, finite.
inline double reproducible_log(double x) {
  int exponent = 0;
  double fraction = std::frexp(x, &exponent);  // [0.5, 1)
  if (fraction < std::numbers::sqrt2 / 2) {
    fraction *= 2;
    --exponent;
  }
  // log(f) = 2 atanh(s), s = (f - 1) / (f + 1), |s| < 0.172: the last term left out is below 2e-17
  const double s = (fraction - 1) / (fraction + 1);
  double series = 0;
  for (int n = 21; n >= 1; n -= 2) series = series * (s * s) + 1.0 / n;
  return exponent * std::numbers::ln2 + 2 * s * series;
}

/// Random numbers that are the same on every machine, in contrast to those of the standard distributions.
/// `stream` makes independent ones of one seed: one for each tensor, one for each epoch.
class RandomStream {
 public:
  explicit RandomStream(std::uint64_t seed, std::uint64_t stream = 0)
      : counter_(mix_bits(seed + golden * mix_bits(stream + golden))) {}

  /// 64 random bits: SplitMix64.
  std::uint64_t bits() { return mix_bits(counter_ += golden); }

  /// Uniform in [0, 1), in steps of 2^-53.
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

  /// Uniform in [0, n). Throws Error unless n > 0.
  std::int64_t below(std::int64_t n) {
    require(n > 0, "random number: found the range [0, {}), expected one that isn't empty", n);
    const auto range = static_cast<std::uint64_t>(n);
    const std::uint64_t uneven = (0 - range) % range;  // 2^64 mod n: so many values would be too frequent
    std::uint64_t value = bits();
    while (value < uneven) value = bits();
    return static_cast<std::int64_t>(value % range);
  }

  /// Normal of mean 0 and variance 1: the polar method (Marsaglia & Bray 1964), one of each pair.
  double normal() {
    for (;;) {
      const double x = 2 * unit() - 1, y = 2 * unit() - 1;
      const double square = x * x + y * y;
      if (square > 0 && square < 1) return x * std::sqrt(-2 * reproducible_log(square) / square);
    }
  }

 private:
  static constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;  // 2^64 / the golden ratio, odd

  std::uint64_t counter_;
};

}  // namespace mla
