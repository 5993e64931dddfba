#include "mla/position/additive.h"

#include <cmath>

#include "mla/core/error.h"

namespace mla {
namespace {

void check(std::int64_t position, std::int64_t dim) {
  require(position >= 0, "position: found {}, expected 0 or more", position);
  require(dim >= 1, "position: found dim {}, expected 1 or more", dim);
}

void encode(PositionKind kind, std::int64_t position, std::int64_t dim, float* out) {
  switch (kind) {
    case PositionKind::integer:
      return integer_position(position, dim, out);
    case PositionKind::binary:
      return binary_position(position, dim, out);
    default:
      return sinusoidal_position(position, dim, out);
  }
}

}  // namespace

void add_positions(PositionKind kind, std::int64_t first, MatrixView<float> stream, Buffer<float>& encoding) {
  if (kind == PositionKind::rotary || kind == PositionKind::none) return;
  const float* added = encoding.resize(stream.cols);
  for (std::int64_t t = 0; t < stream.rows; ++t) {
    encode(kind, first + t, stream.cols, encoding.data());
    for (std::int64_t i = 0; i < stream.cols; ++i) stream.row(t)[i] += added[i];
  }
}

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
