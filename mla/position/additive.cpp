#include "mla/position/additive.h"

#include <cmath>

#include "mla/core/error.h"

namespace mla {
namespace {

void check(std::int64_t position, std::int64_t dim) {
  require(position >= 0, "position: found {}, expected 0 or more", position);
  require(dim >= 1, "position: found dim {}, expected 1 or more", dim);
}

}  // namespace

void integer_position(std::int64_t position, std::int64_t dim, float* out) {
  check(position, dim);
  for (std::int64_t i = 0; i < dim; ++i) out[i] = static_cast<float>(position);
}

void binary_position(std::int64_t position, std::int64_t dim, float* out) {
  check(position, dim);
  for (std::int64_t i = 0; i < dim; ++i) out[i] = i < 63 ? static_cast<float>((position >> i) & 1) : 0.0f;
}

void sinusoidal_position(std::int64_t position, std::int64_t dim, float* out, double base) {
  check(position, dim);
  for (std::int64_t i = 0; i < dim; ++i) {
    const double exponent = static_cast<double>(i - i % 2) / static_cast<double>(dim);
    const double angle = static_cast<double>(position) * std::pow(base, -exponent);
    out[i] = static_cast<float>(i % 2 == 0 ? std::sin(angle) : std::cos(angle));
  }
}

}  // namespace mla
