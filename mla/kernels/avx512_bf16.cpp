// Products of bf16 pairs: AVX-512 with BF16. Compiled with -mavx512bf16; see product.h.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/product.h"

namespace mla {
namespace {

// ---------------------------------------------------------------- dot: lanes are 4 tokens x 4 partial sums
//
// A step takes 8 values. Weights come in by 128-bit broadcasts from the row itself, tokens as [4 tokens][8
// values]; partial sum p of a token adds the pairs 4 j + p. 4 rows x 6 groups of tokens: 24 accumulators, 10
// loads for 24 products.

constexpr std::int64_t step = product_step;
constexpr int tile_rows = 4;

__m512bh as_pairs(__m512i x) {
  return reinterpret_cast<__m512bh>(x);
}
__m128bh as_pairs(__m128i x) {
  return reinterpret_cast<__m128bh>(x);
}

/// The first `n` of 8 values; what lies behind them is not read.
__m128i load_values(const bf16* p, std::int64_t n) {
  return _mm_maskz_loadu_epi16(static_cast<__mmask8>((1u << n) - 1u), p);
}

/// Lane (token g, row i) = the four partial sums of row i and token g.
__m512 reduce(__m512 r0, __m512 r1, __m512 r2, __m512 r3) {
  const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(r0, r1), _mm512_unpackhi_ps(r0, r1));
  const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(r2, r3), _mm512_unpackhi_ps(r2, r3));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b));
  return _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
}

/// The same for one token: lane i = row i.
__m128 reduce(__m128 r0, __m128 r1, __m128 r2, __m128 r3) {
  const __m128 a = _mm_add_ps(_mm_unpacklo_ps(r0, r1), _mm_unpackhi_ps(r0, r1));
  const __m128 b = _mm_add_ps(_mm_unpacklo_ps(r2, r3), _mm_unpackhi_ps(r2, r3));
  return _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
}

/// Four weight rows; rows beyond the last one are the last one again, and their results are not stored.
struct Rows {
  const bf16* at[tile_rows];
  __mmask8 valid;
  Rows(const DotTile& t, std::int64_t first) {
    const std::int64_t left = t.rows - first;
    for (int i = 0; i < tile_rows; ++i)
      at[i] = t.weights + (first + (i < left ? i : left - 1)) * t.weight_stride;
    valid = static_cast<__mmask8>(left >= tile_rows ? 15 : (1 << left) - 1);
  }
};

/// Rows [first, first + 4) and G groups of tokens.
template <int G>
__attribute__((noinline)) void dot_groups(const DotTile& t, std::int64_t first) {
  const Rows rows(t, first);
  __m512 acc[tile_rows][G];
#pragma GCC unroll 4
  for (int i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 6
    for (int g = 0; g < G; ++g) acc[i][g] = _mm512_setzero_ps();
  }
  const bf16* tokens = t.tokens;
  const auto add = [&](const auto& weights_of) __attribute__((always_inline)) {
    __m512bh x[G];
#pragma GCC unroll 6
    for (int g = 0; g < G; ++g) x[g] = as_pairs(_mm512_loadu_si512(tokens + g * 4 * step));
#pragma GCC unroll 4
    for (int i = 0; i < tile_rows; ++i) {
      const __m512bh w = as_pairs(_mm512_broadcast_i32x4(weights_of(i)));
#pragma GCC unroll 6
      for (int g = 0; g < G; ++g) acc[i][g] = _mm512_dpbf16_ps(acc[i][g], w, x[g]);
    }
    tokens += G * 4 * step;
  };
  std::int64_t d = 0;
  for (; d + step <= t.depth; d += step) {
    add([&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.at[i] + d)); });
  }
  if (d < t.depth) add([&](int i) { return load_values(rows.at[i] + d, t.depth - d); });
#pragma GCC unroll 6
  for (int g = 0; g < G; ++g) {
    const __m512 sums = reduce(acc[0][g], acc[1][g], acc[2][g], acc[3][g]);
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, sums);
    for (int token = 4 * g; token < 4 * g + 4 && token < t.num_tokens; ++token) {
      _mm_mask_storeu_ps(t.y + token * t.y_stride + first, rows.valid,
                         _mm_load_ps(lanes + 4 * (token - 4 * g)));
    }
  }
}

/// One token: the same sums in 128-bit registers, R times four rows at a time. Bound by the memory that the
/// weights lie in.
template <int R>
void dot_one(const DotTile& t, std::int64_t first) {
  const bf16* at[R * tile_rows];
  __mmask8 valid = 15;
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    const Rows rows(t, first + r * tile_rows);
    for (int i = 0; i < tile_rows; ++i) at[r * tile_rows + i] = rows.at[i];
    valid = rows.valid;
  }
  __m128 acc[R * tile_rows];
#pragma GCC unroll 8
  for (__m128& a : acc) a = _mm_setzero_ps();
  std::int64_t d = 0;
  for (; d + step <= t.depth; d += step) {
    const __m128bh x = as_pairs(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t.tokens + d)));
#pragma GCC unroll 8
    for (int i = 0; i < R * tile_rows; ++i) {
      acc[i] =
          _mm_dpbf16_ps(acc[i], as_pairs(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at[i] + d))), x);
    }
  }
  if (d < t.depth) {
    const __m128bh x = as_pairs(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t.tokens + d)));
#pragma GCC unroll 8
    for (int i = 0; i < R * tile_rows; ++i)
      acc[i] = _mm_dpbf16_ps(acc[i], as_pairs(load_values(at[i] + d, t.depth - d)), x);
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
    const __m128* a = acc + r * tile_rows;
    _mm_mask_storeu_ps(t.y + first + r * tile_rows, r + 1 < R ? static_cast<__mmask8>(15) : valid,
                       reduce(a[0], a[1], a[2], a[3]));
  }
}

// ---------------------------------------------------------------- sum: lanes are 32 columns
//
// Two weight rows at a time, interleaved in registers into pairs; tokens come in by 32-bit broadcasts of
// their pairs.

/// Columns [first, first + count), count at most 32, for T tokens.
template <int T>
__attribute__((noinline)) void sum_columns(const SumTile& t, std::int64_t first, std::int64_t count) {
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

}  // namespace

void dot_bf16(const DotTile& t) {
  if (t.num_tokens == 1) {
    std::int64_t r = 0;
    for (; r + 2 * tile_rows <= t.rows; r += 2 * tile_rows) dot_one<2>(t, r);
    for (; r < t.rows; r += tile_rows) dot_one<1>(t, r);
    return;
  }
  for (std::int64_t r = 0; r < t.rows; r += tile_rows) {
    switch ((t.num_tokens + 3) / 4) {
      case 1:
        dot_groups<1>(t, r);
        break;
      case 2:
        dot_groups<2>(t, r);
        break;
      case 3:
        dot_groups<3>(t, r);
        break;
      case 4:
        dot_groups<4>(t, r);
        break;
      case 5:
        dot_groups<5>(t, r);
        break;
      default:
        dot_groups<6>(t, r);
        break;
    }
  }
}

void sum_bf16(const SumTile& t) {
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

}  // namespace mla
