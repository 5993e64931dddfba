#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "mla/position/rotary.h"

// Lengths and angles of vectors, which the topics on heads and positions measure; sums in double.

namespace mla::app {

double norm(std::span<const float> x);
inline double norm(const float* x, std::int64_t n) {
  return norm({x, static_cast<std::size_t>(n)});
}
double distance(std::span<const float> a, std::span<const float> b);
double cosine(std::span<const float> a, std::span<const float> b);
/// The largest difference of two values at one place.
double largest_difference(std::span<const float> a, std::span<const float> b);
double largest_size(std::span<const float> x);

/// x as rotary turns it at `position`, and a turned x as it was before.
std::vector<float> turned(const Rotary& rotary, std::span<const float> x, std::int64_t position);
std::vector<float> turned_back(const Rotary& rotary, std::span<const float> x, std::int64_t position);

}  // namespace mla::app
