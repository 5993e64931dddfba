// The oracle: one float at a time, exp from the C library.
#include <bit>
#include <cmath>
#include <cstdint>

#include "mla/core/dtype.h"

namespace mla {
namespace {

struct Lanes {
  using F = float;
  static constexpr int width = 1;
  static F zero() { return 0.0f; }
  static F set(float value) { return value; }
  static F load(const float* p) { return *p; }
  static F load(const bf16* p) { return to_float(*p); }
  static F load_f16(const std::uint16_t* p) { return f16_to_float(*p); }
  static F load_f8(const std::uint8_t* p) { return f8_e4m3_to_float(*p); }
  static F load_part(const float* p, std::int64_t) { return *p; }
  static F load_part(const bf16* p, std::int64_t) { return to_float(*p); }
  static void store(float* p, F value) { *p = value; }
  static void store(bf16* p, F value) { *p = to_bf16(value); }
  static void store_part(float* p, F value, std::int64_t) { *p = value; }
  static void store_part(bf16* p, F value, std::int64_t) { *p = to_bf16(value); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F exp(F x) { return std::exp(x); }
  static float reduce_max(F x) { return x; }
  static float reduce_add(F x) { return x; }
};

}  // namespace
}  // namespace mla

#include "mla/kernels/leaf_math.h"

#include "mla/kernels/gradient_math.h"
#include "mla/kernels/panel.h"
#include "mla/kernels/product.h"

namespace mla {
namespace {

constexpr std::int64_t scalar_group = 8;  // a set is the whole tile

template <class T>
void dot(const DotTile<T, float>& tile) {
  const std::int64_t packed = set_tokens(tile.num_tokens, scalar_group);
  for (std::int64_t t = 0; t < tile.num_tokens; ++t) {
    for (std::int64_t r = 0; r < tile.rows; ++r) {
      const T* row = tile.weights + r * tile.weight_stride;
      float sums[2] = {};
      for (std::int64_t d = 0; d < tile.depth; ++d)
        sums[d % 2] += to_float(row[d]) * tile.tokens[(d / 2 * packed + t) * 2 + d % 2];
      tile.y[t * tile.y_stride + r] = sums[0] + sums[1];
    }
  }
}

template <class T>
void sum(const SumTile<T, float>& tile) {
  for (std::int64_t t = 0; t < tile.num_tokens; ++t) {
    float* y = tile.y + t * tile.y_stride;
    for (std::int64_t c = 0; c < tile.cols; ++c) y[c] = 0.0f;
    for (std::int64_t d = 0; d < tile.depth; ++d) {
      const T* row = tile.weights + d * tile.weight_stride;
      for (std::int64_t c = 0; c < tile.cols; ++c)
        y[c] += tile.tokens[t * tile.token_stride + d] * to_float(row[c]);
    }
  }
}

void transpose(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t columns, float* to,
               std::int64_t to_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; ++c) to[c * to_stride + r] = from[r * stride + c];
  }
}

constexpr std::int64_t panel = 4;  // rows and columns

void multiply_panels(const PanelTile& t) {
  for (std::int64_t i = 0; i < t.rows; ++i) {
    for (std::int64_t j = 0; j < t.cols; ++j) {
      float total = 0.0f;
      for (std::int64_t k = 0; k < t.depth; ++k)
        total += std::bit_cast<float>(t.a[k * panel + i]) * std::bit_cast<float>(t.b[k * panel + j]);
      float& c = t.c[i * t.c_stride + j];
      c = t.adds ? c + total : total;
    }
  }
}

/// Value i of unit k lies `along` * k + `across` * i from the first one.
void pack(const PanelSource& s, std::int64_t along, std::int64_t across, PanelUnit* out) {
  for (std::int64_t first = 0; first < s.width; first += panel, out += s.panel_stride) {
    for (std::int64_t k = 0; k < s.depth; ++k)
      for (std::int64_t i = 0; i < panel; ++i)
        out[k * panel + i] =
            first + i < s.width ? std::bit_cast<PanelUnit>(s.x[k * along + (first + i) * across]) : 0;
  }
}

void pack_straight(const PanelSource& s, PanelUnit* out) {
  pack(s, s.stride, 1, out);
}
void pack_transposed(const PanelSource& s, PanelUnit* out) {
  pack(s, 1, s.stride, out);
}

}  // namespace

const PanelKernels scalar_panels = {
    panel, panel, 1, multiply_panels, pack_straight, pack_transposed, pack_straight, pack_transposed};
const LeafKernels scalar_kernels = make_kernels(Isa::scalar);
const ProductKernels scalar_products = {scalar_group, dot<float>, dot<bf16>, sum<float>, sum<bf16>};
const GradientKernels scalar_gradients = {forward_tile, gradient_tile, transpose};

}  // namespace mla
