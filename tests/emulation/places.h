#pragma once
// Masks, and lanes that go to other places.
#include <cmath>
#include <cstdlib>
#include <type_traits>

#include "emulation/lanes.h"

namespace mla::emulation {

// ---------------------------------------------------------------- masks

/// An unordered operand makes 'not less', 'not' anything, true, and what does not begin with 'not' false.
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int what) {
  return from_bits([&](int i) {
    switch (what) {
      case _CMP_LT_OQ:
        return a[i] < b[i];
      case _CMP_GT_OQ:
        return a[i] > b[i];
      case _CMP_EQ_OQ:
        return a[i] == b[i];
      case _CMP_NLT_UQ:
        return !(a[i] < b[i]);
      case _CMP_NLE_UQ:
        return !(a[i] <= b[i]);
      case _CMP_NEQ_UQ:
        return a[i] != b[i];
      case _CMP_UNORD_Q:
        return std::isnan(a[i]) || std::isnan(b[i]);
    }
    std::abort();
  });
}
inline __mmask16 _mm512_cmpge_epi32_mask(__m512i a, __m512i b) {
  return from_bits([&](int i) { return lane<int32_t>(a, i) >= lane<int32_t>(b, i); });
}
inline __m512 _mm512_mask_mov_ps(__m512 other, __mmask16 m, __m512 x) {
  return choose<float>(m, other, x);
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 m, __m512 x) {
  return choose<float>(m, __m512{}, x);
}
inline __m512 _mm512_mask_blend_ps(__mmask16 m, __m512 a, __m512 b) {
  return choose<float>(m, a, b);
}
inline __m512i _mm512_mask_mov_epi64(__m512i other, __mmask8 m, __m512i x) {
  return choose<uint64_t>(m, other, x);
}
inline __m512i _mm512_mask_blend_epi16(__mmask32 m, __m512i a, __m512i b) {
  return choose<uint16_t>(m, a, b);
}

// ---------------------------------------------------------------- lanes to other places

template <class V>
V repeated(const auto& part) {
  return from_lanes<V, std::decay_t<decltype(part)>>([&](int) { return part; });
}
inline __m512 _mm512_broadcast_f32x4(__m128 x) {
  return repeated<__m512>(x);
}
inline __m512 _mm512_broadcast_f32x8(__m256 x) {
  return repeated<__m512>(x);
}
inline __m512i _mm512_broadcast_i32x4(__m128i x) {
  return repeated<__m512i>(x);
}
inline __m512i _mm512_broadcast_i64x4(__m256i x) {
  return repeated<__m512i>(x);
}
inline __m256 _mm512_extractf32x8_ps(__m512 x, int half) {
  return lane<__m256>(x, half);
}

/// Quarters: two of a, then two of b.
template <class V>
V quarters(const V& a, const V& b, int control) {
  return from_lanes<V, __m128i>([&](int i) { return lane<__m128i>(i < 2 ? a : b, control >> 2 * i & 3); });
}
inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int control) {
  return quarters(a, b, control);
}
inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int control) {
  return quarters(a, b, control);
}
inline __m512i _mm512_shuffle_i64x2(__m512i a, __m512i b, int control) {
  return quarters(a, b, control);
}
inline __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int control) {
  return from_lanes<__m512, float>(
      [&](int i) { return (i % 4 < 2 ? a : b)[i / 4 * 4 + (control >> 2 * (i % 4) & 3)]; });
}
inline __m512 _mm512_permute_ps(__m512 x, int control) {
  return _mm512_shuffle_ps(x, x, control);
}

/// Within each quarter: the lower or upper lanes of a and b in turn.
template <class T, class V>
V unpacked(const V& a, const V& b, bool upper) {
  constexpr int n = 16 / sizeof(T);
  return from_lanes<V, T>(
      [&](int i) { return lane<T>(i % 2 ? b : a, i / n * n + i % n / 2 + (upper ? n / 2 : 0)); });
}
inline __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  return unpacked<float>(a, b, false);
}
inline __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  return unpacked<float>(a, b, true);
}
inline __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) {
  return unpacked<double>(a, b, false);
}
inline __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) {
  return unpacked<double>(a, b, true);
}
inline __m512i _mm512_unpacklo_epi8(__m512i a, __m512i b) {
  return unpacked<uint8_t>(a, b, false);
}
inline __m512i _mm512_unpackhi_epi8(__m512i a, __m512i b) {
  return unpacked<uint8_t>(a, b, true);
}
inline __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) {
  return unpacked<uint16_t>(a, b, false);
}
inline __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) {
  return unpacked<uint16_t>(a, b, true);
}
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) {
  return unpacked<uint32_t>(a, b, false);
}
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) {
  return unpacked<uint32_t>(a, b, true);
}
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) {
  return unpacked<uint64_t>(a, b, false);
}
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) {
  return unpacked<uint64_t>(a, b, true);
}

/// Each lane is the one of a, or behind its lanes of b, that `places` names.
template <class T, class V>
V permuted(const V& a, const __m512i& places, const V& b) {
  constexpr int n = 64 / sizeof(T);
  using Place =
      std::conditional_t<sizeof(T) == 1, uint8_t, std::conditional_t<sizeof(T) == 2, uint16_t, uint64_t>>;
  return from_lanes<V, T>([&](int i) {
    const int place = static_cast<int>(lane<Place>(places, i));
    return lane<T>(place & n ? b : a, place & (n - 1));
  });
}
inline __m512i _mm512_permutexvar_epi16(__m512i places, __m512i x) {
  return permuted<uint16_t>(x, places, x);
}
inline __m512i _mm512_permutexvar_epi64(__m512i places, __m512i x) {
  return permuted<uint64_t>(x, places, x);
}
inline __m512d _mm512_permutex2var_pd(__m512d a, __m512i places, __m512d b) {
  return permuted<double>(a, places, b);
}
inline __m512i _mm512_permutex2var_epi8(__m512i a, __m512i places, __m512i b) {
  return permuted<uint8_t>(a, places, b);
}
inline __m512i _mm512_maskz_permutex2var_epi8(__mmask64 m, __m512i a, __m512i places, __m512i b) {
  return choose<uint8_t>(m, __m512i{}, permuted<uint8_t>(a, places, b));
}

}  // namespace mla::emulation
