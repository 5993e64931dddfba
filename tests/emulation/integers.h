#pragma once
// Arithmetic of integers, and conversions.
#include <cmath>
#include <limits>

#include "emulation/lanes.h"

namespace mla::emulation {

// ---------------------------------------------------------------- integers

template <class T, class Op>
__m512i each(const __m512i& a, const __m512i& b, const Op& op) {
  return from_lanes<__m512i, T>([&](int i) { return op(lane<T>(a, i), lane<T>(b, i)); });
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return a & b;
}
inline __m512i _mm512_or_si512(__m512i a, __m512i b) {
  return a | b;
}
inline __m512i _mm512_mask_or_epi32(__m512i other, __mmask16 m, __m512i a, __m512i b) {
  return choose<uint32_t>(m, other, a | b);
}
inline __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
  __m512i result{};
  for (int k = 0; k < 8; ++k)
    if (table >> k & 1) result |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  return result;
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return each<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x + y; });
}
inline __m512i _mm512_sub_epi16(__m512i a, __m512i b) {
  return each<uint16_t>(a, b, [](uint16_t x, uint16_t y) { return x - y; });
}
inline __m512i _mm512_subs_epu16(__m512i a, __m512i b) {
  return each<uint16_t>(a, b, [](uint16_t x, uint16_t y) { return x > y ? x - y : 0; });
}
inline __m512i _mm512_subs_epu8(__m512i a, __m512i b) {
  return each<uint8_t>(a, b, [](uint8_t x, uint8_t y) { return x > y ? x - y : 0; });
}
inline __m512i _mm512_slli_epi32(__m512i x, unsigned n) {
  return from_lanes<__m512i, uint32_t>([&](int i) { return n < 32 ? lane<uint32_t>(x, i) << n : 0; });
}
inline __m512i _mm512_srli_epi32(__m512i x, unsigned n) {
  return from_lanes<__m512i, uint32_t>([&](int i) { return n < 32 ? lane<uint32_t>(x, i) >> n : 0; });
}

// ---------------------------------------------------------------- from type to type

inline int32_t to_int(float x) {
  constexpr float limit = 2147483648.0f;
  return x >= -limit && x < limit ? static_cast<int32_t>(x) : std::numeric_limits<int32_t>::min();
}
inline __m512i _mm512_cvtps_epi32(__m512 x) {
  return from_lanes<__m512i, int32_t>([&](int i) { return to_int(std::nearbyint(x[i])); });
}
inline __m512i _mm512_cvttps_epi32(__m512 x) {
  return from_lanes<__m512i, int32_t>([&](int i) { return to_int(x[i]); });
}
inline __m512i _mm512_mask_cvttps_epi32(__m512i other, __mmask16 m, __m512 x) {
  return choose<int32_t>(m, other, _mm512_cvttps_epi32(x));
}
inline __m512i _mm512_maskz_cvttps_epi32(__mmask16 m, __m512 x) {
  return choose<int32_t>(m, __m512i{}, _mm512_cvttps_epi32(x));
}
inline __m512 _mm512_cvtepi32_ps(__m512i x) {
  return from_lanes<__m512, float>([&](int i) { return static_cast<float>(lane<int32_t>(x, i)); });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
  return from_lanes<__m512i, uint32_t>([&](int i) { return lane<uint16_t>(x, i); });
}
inline __m256i _mm512_cvtepi32_epi16(__m512i x) {
  return from_lanes<__m256i, uint16_t>([&](int i) { return lane<uint32_t>(x, i); });
}
inline __m128i _mm512_cvtepi32_epi8(__m512i x) {
  return from_lanes<__m128i, uint8_t>([&](int i) { return lane<uint32_t>(x, i); });
}
inline __m128i _mm512_cvtusepi32_epi8(__m512i x) {
  return from_lanes<__m128i, uint8_t>(
      [&](int i) { return lane<uint32_t>(x, i) < 255 ? lane<uint32_t>(x, i) : 255; });
}
inline __m512 _mm512_cvtph_ps(__m256i x) {
  return from_lanes<__m512, __m256>([&](int i) { return _mm256_cvtph_ps(lane<__m128i>(x, i)); });
}

}  // namespace mla::emulation
