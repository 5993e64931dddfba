#pragma once
// Panels of bf16 pairs (panel.h): AVX-512 with BF16, in the anonymous namespace of the file that includes it.
#include "mla/kernels/avx512_pairs.h"
#include "mla/kernels/panel_math.h"

namespace mla {
namespace {

struct PairPanelOps {
  using F = __m512;
  using X = __m512i;
  static constexpr std::int64_t width = 16;
  static constexpr int rows = 12, vectors = 2;
  static constexpr std::int64_t values = 2;
  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_part(const float* p, std::int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F value) { _mm512_storeu_ps(p, value); }
  static void store_part(float* p, F value, std::int64_t n) { _mm512_mask_storeu_ps(p, first(n), value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static X load_units(const PanelUnit* p) { return _mm512_loadu_si512(p); }
  static X repeat(const PanelUnit* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  static F fma(X a, X b, F sums) { return _mm512_dpbf16_ps(sums, as_pairs(a), as_pairs(b)); }

  template <std::int64_t panel>
  static void pack_pair(const float* row, const float* next, std::int64_t count, PanelUnit* out) {
    for (std::int64_t i = 0; i < panel; i += 16) {
      const std::int64_t some = count - i < 0 ? 0 : count - i < 16 ? count - i : 16;
      const F low = load_part(row + i, some);
      const F high = next != nullptr ? load_part(next + i, some) : zero();
      const X pairs =
          _mm512_permutexvar_epi16(interleave(), reinterpret_cast<X>(_mm512_cvtne2ps_pbh(high, low)));
      _mm512_mask_storeu_epi32(out + i, first(panel - i < 16 ? panel - i : 16), pairs);
    }
  }
  static void convert(const float* x, std::int64_t n, PanelUnit* units) {
    for (std::int64_t i = 0; i < n; i += 16) {
      const __m256i values_ = narrow(n - i < 16 ? load_part(x + i, n - i) : load(x + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(units + i / 2), values_);
    }
  }

 private:
  static __mmask16 first(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  static __m256i narrow(F value) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)); }
  /// Takes 16 lower and 16 upper halves to 16 pairs.
  static X interleave() {
    const X places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_or_si512(places, _mm512_slli_epi32(_mm512_add_epi32(places, _mm512_set1_epi32(16)), 16));
  }
};

}  // namespace
}  // namespace mla
