#pragma once
// Panels of f32 of the vector instruction sets (panel.h), to be included behind leaf_math.h, which defines F
// and W: everything here is in the anonymous namespace of the file that includes it.
#include "mla/kernels/panel_math.h"

namespace mla {
namespace {

struct F32PanelOps {
  using F = Lanes::F;
  using X = Lanes::F;
  static constexpr std::int64_t width = W;
  // As many sums as the registers hold beside a row of b; rows in fours.
  static constexpr int rows = W == 16 ? 12 : 4, vectors = W == 16 ? 2 : 3;
  static constexpr std::int64_t values = 1;
  static F zero() { return Lanes::zero(); }
  static F load(const float* p) { return Lanes::load(p); }
  static F load_part(const float* p, std::int64_t n) { return Lanes::load_part(p, n); }
  static void store(float* p, F value) { Lanes::store(p, value); }
  static void store_part(float* p, F value, std::int64_t n) { Lanes::store_part(p, value, n); }
  static F add(F a, F b) { return Lanes::add(a, b); }
  static F load_units(const PanelUnit* p) { return Lanes::load(reinterpret_cast<const float*>(p)); }
  static F repeat(const PanelUnit* p) { return Lanes::set(__builtin_bit_cast(float, *p)); }
  static F fma(F a, F b, F sums) { return Lanes::fma(a, b, sums); }

  template <std::int64_t panel>
  static void pack_pair(const float* row, const float*, std::int64_t width_, PanelUnit* out) {
    if (width_ == panel) {
      __builtin_memcpy(out, row, panel * sizeof(float));
    } else {
      convert(row, width_, out);
      for (std::int64_t i = width_; i < panel; ++i) out[i] = 0;
    }
  }
  static void convert(const float* x, std::int64_t n, PanelUnit* units) {
    __builtin_memcpy(units, x, static_cast<std::size_t>(n) * sizeof(float));
  }
};

constexpr PanelKernels vector_panels = make_panels<F32PanelOps>();

}  // namespace
}  // namespace mla
