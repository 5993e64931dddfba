#pragma once
// The sum of values of avx512_bf16_attend.cpp, which alone includes this: lanes are 32 features. Two rows at
// a time are interleaved in registers into pairs; weights come in by 32-bit broadcasts.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace mla {
namespace {

__m512bh as_pairs(__m512i x) {
  return reinterpret_cast<__m512bh>(x);
}

struct ValueTile {
  const std::byte* const* rows;   // [2 pairs]
  const std::byte* const* ahead;  // rows of the next tile to fetch, or null
  int pairs;
  std::int64_t offset;           // bytes from a row's start to its values' first feature here
  std::int64_t ahead_offset;     // bytes from a row's start to the line to fetch
  const std::uint32_t* weights;  // [pairs][weight_stride]
  std::int64_t weight_stride;
  const float* shift;  // [Q] multiplies the sums so far
  float* acc;          // [Q][stride]
  std::int64_t stride;
  __mmask32 features;  // of the 32, those that exist
  bool is_first;       // there are no sums so far
  bool is_ordered;     // the sums so far are in the features' order, else as unpacking left them
  bool to_order;       // the sums are to be put into the features' order
};

/// Pairs of lanes of (low, high) by index, for both.
void rearrange(__m512& low, __m512& high, __m512i to_low, __m512i to_high) {
  const __m512d l = _mm512_castps_pd(low), h = _mm512_castps_pd(high);
  low = _mm512_castpd_ps(_mm512_permutex2var_pd(l, to_low, h));
  high = _mm512_castpd_ps(_mm512_permutex2var_pd(l, to_high, h));
}

template <int Q>
__attribute__((noinline)) void value_block(const ValueTile& t) {
  // Unpacking leaves features 8g..8g+3 in 128-bit lane g of low and 8g+4..8g+7 in that of high.
  const auto mask0 = static_cast<__mmask16>(t.features), mask1 = static_cast<__mmask16>(t.features >> 16);
  __m512 low[Q], high[Q];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    low[q] = high[q] = _mm512_setzero_ps();
    if (t.is_first) continue;
    const __m512 shift = _mm512_set1_ps(t.shift[q]);
    low[q] = _mm512_mul_ps(shift, _mm512_maskz_loadu_ps(mask0, t.acc + q * t.stride));
    high[q] = _mm512_mul_ps(shift, _mm512_maskz_loadu_ps(mask1, t.acc + q * t.stride + 16));
    if (!t.is_ordered) continue;
    rearrange(low[q], high[q], _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0),
              _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2));
  }
  const std::uint32_t* weights = t.weights;
  for (int i = 0; i < t.pairs; ++i, weights += t.weight_stride) {
    const __m512i even = _mm512_maskz_loadu_epi16(t.features, t.rows[2 * i] + t.offset);
    const __m512i odd = _mm512_maskz_loadu_epi16(t.features, t.rows[2 * i + 1] + t.offset);
    if (t.ahead) {
      _mm_prefetch(reinterpret_cast<const char*>(t.ahead[2 * i] + t.ahead_offset), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(t.ahead[2 * i + 1] + t.ahead_offset), _MM_HINT_T1);
    }
    const __m512bh l = as_pairs(_mm512_unpacklo_epi16(even, odd)),
                   h = as_pairs(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const __m512bh p = as_pairs(_mm512_set1_epi32(static_cast<int>(weights[q])));
      low[q] = _mm512_dpbf16_ps(low[q], p, l);
      high[q] = _mm512_dpbf16_ps(high[q], p, h);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    if (t.to_order) {
      rearrange(low[q], high[q], _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0),
                _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4));
    }
    _mm512_mask_storeu_ps(t.acc + q * t.stride, mask0, low[q]);
    _mm512_mask_storeu_ps(t.acc + q * t.stride + 16, mask1, high[q]);
  }
}

void values_of(const ValueTile& tile, std::int64_t queries) {
  switch (queries) {
    case 1:
      return value_block<1>(tile);
    case 2:
      return value_block<2>(tile);
    case 3:
      return value_block<3>(tile);
    case 4:
      return value_block<4>(tile);
    case 5:
      return value_block<5>(tile);
    case 6:
      return value_block<6>(tile);
    case 7:
      return value_block<7>(tile);
    default:
      return value_block<8>(tile);
  }
}

}  // namespace
}  // namespace mla
