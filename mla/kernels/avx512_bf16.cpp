// Products of bf16 pairs: AVX-512 with BF16. Compiled with -mavx512bf16; see product.h.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/avx512_bf16_panels.h"
#include "mla/kernels/avx512_pairs.h"
#include "mla/kernels/panel.h"
#include "mla/kernels/product_dot.h"
#include "mla/kernels/read64.h"

namespace mla {
namespace {

/// bf16 tokens with bf16 weights, multiplied as pairs (see product_dot.h).
struct PairOps {
  using Weight = bf16;
  using Token = bf16;
  using F = __m512;
  using X = __m512i;
  using Line = __m256i;
  static constexpr std::int64_t width = 16;
  static constexpr int run = 8, pieces = 2;
  static constexpr std::int64_t chunk =
      32768;  // few models have longer rows: sums kept in memory cost more than L2
  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F value) { _mm512_storeu_ps(p, value); }
  static X load_tokens(const bf16* p) { return _mm512_loadu_si512(p); }
  static X repeat(const bf16* p) { return _mm512_set1_epi64(read64(p)); }
  static F fma(X w, X x, F sums) { return _mm512_dpbf16_ps(sums, as_pairs(w), as_pairs(x)); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F even(F a, F b) { return _mm512_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)); }
  static F odd(F a, F b) { return _mm512_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)); }

  static Line line(const bf16* low, const bf16* high) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
  }
  static void split(Line ac, Line bd, Line* w) {
    w[0] = _mm256_unpacklo_epi64(ac, bd);
    w[1] = _mm256_unpackhi_epi64(ac, bd);
  }
  static Line repeat_token(const bf16* p) { return _mm256_set1_epi64x(read64(p)); }
  static __m256 fma_line(Line w, Line x, __m256 sums) {
    return _mm256_dpbf16_ps(sums, reinterpret_cast<__m256bh>(w), reinterpret_cast<__m256bh>(x));
  }
};

// ---------------------------------------------------------------- sum: lanes are 32 columns
//
// Two weight rows at a time, interleaved in registers into pairs; tokens come in by 32-bit broadcasts of
// their pairs.

constexpr std::int64_t sum_group = 8;  // tokens of one block

/// Columns [first, first + count), count at most 32, for T tokens.
template <int T>
__attribute__((noinline)) void sum_columns(const SumTile<bf16, bf16>& t, std::int64_t first,
                                           std::int64_t count) {
  const auto columns = static_cast<__mmask32>(count >= 32 ? ~0u : (1u << count) - 1u);
  __m512 low[T], high[T];
#pragma GCC unroll 8
  for (int i = 0; i < T; ++i) low[i] = high[i] = _mm512_setzero_ps();
  const bf16* row = t.weights + first;
  const auto add = [&](std::int64_t d, __m512i even, __m512i odd) __attribute__((always_inline)) {
    const __m512bh l = as_pairs(_mm512_unpacklo_epi16(even, odd));
    const __m512bh h = as_pairs(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 8
    for (int i = 0; i < T; ++i) {
      std::int32_t pair;
      std::memcpy(&pair, t.tokens + i * t.token_stride + d, sizeof pair);
      const __m512bh x = as_pairs(_mm512_set1_epi32(pair));
      low[i] = _mm512_dpbf16_ps(low[i], x, l);
      high[i] = _mm512_dpbf16_ps(high[i], x, h);
    }
  };
  std::int64_t d = 0;
  for (; d + 2 <= t.depth; d += 2, row += 2 * t.weight_stride) {
    add(d, _mm512_maskz_loadu_epi16(columns, row), _mm512_maskz_loadu_epi16(columns, row + t.weight_stride));
  }
  if (d < t.depth) add(d, _mm512_maskz_loadu_epi16(columns, row), _mm512_setzero_si512());
  // The interleaving left features 8g..8g+3 in 128-bit lane g of low and 8g+4..8g+7 in that of high.
  const __m512i front = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0),
                back = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
#pragma GCC unroll 8
  for (int i = 0; i < T; ++i) {
    const __m512d l = _mm512_castps_pd(low[i]), h = _mm512_castps_pd(high[i]);
    float* y = t.y + i * t.y_stride + first;
    _mm512_mask_storeu_ps(y, static_cast<__mmask16>(columns),
                          _mm512_castpd_ps(_mm512_permutex2var_pd(l, front, h)));
    _mm512_mask_storeu_ps(y + 16, static_cast<__mmask16>(columns >> 16),
                          _mm512_castpd_ps(_mm512_permutex2var_pd(l, back, h)));
  }
}

/// All columns of the tile's first 8 tokens.
void sum_group_columns(const SumTile<bf16, bf16>& t) {
  for (std::int64_t c = 0; c < t.cols; c += 32) {
    const std::int64_t count = t.cols - c;
    switch (t.num_tokens) {
      case 1:
        sum_columns<1>(t, c, count);
        break;
      case 2:
        sum_columns<2>(t, c, count);
        break;
      case 3:
        sum_columns<3>(t, c, count);
        break;
      case 4:
        sum_columns<4>(t, c, count);
        break;
      case 5:
        sum_columns<5>(t, c, count);
        break;
      case 6:
        sum_columns<6>(t, c, count);
        break;
      case 7:
        sum_columns<7>(t, c, count);
        break;
      default:
        sum_columns<8>(t, c, count);
        break;
    }
  }
}

}  // namespace

const PanelKernels avx512_bf16_panels = make_panels<PairPanelOps>();

void dot_bf16_pairs(const DotTile<bf16, bf16>& tile) {
  dot<PairOps>(tile);
}

void sum_bf16_pairs(const SumTile<bf16, bf16>& tile) {
  for (std::int64_t first = 0; first < tile.num_tokens; first += sum_group) {
    SumTile<bf16, bf16> t = tile;
    t.tokens += first * t.token_stride;
    t.num_tokens -= first;
    t.y += first * t.y_stride;
    sum_group_columns(t);
  }
}

}  // namespace mla
