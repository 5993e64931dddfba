#pragma once
// Arithmetic of floats, of pairs of bf16 and of quadruples of bytes.
#include <cmath>
#include <cstdlib>

#include "emulation/lanes.h"

namespace mla::emulation {

// ---------------------------------------------------------------- floats

inline __m512 _mm512_add_ps(__m512 a, __m512 b) {
  return a + b;
}
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) {
  return a - b;
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
  return a * b;
}
inline __m512 _mm512_div_ps(__m512 a, __m512 b) {
  return a / b;
}
inline __m512 _mm512_maskz_sub_ps(__mmask16 m, __m512 a, __m512 b) {
  return choose<float>(m, __m512{}, a - b);
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return by_halves(a, b, c, [](__m256 x, __m256 y, __m256 z) { return _mm256_fmadd_ps(x, y, z); });
}
inline __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) {
  return by_halves(a, b, c, [](__m256 x, __m256 y, __m256 z) { return _mm256_fmsub_ps(x, y, z); });
}
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
  return by_halves(a, b, c, [](__m256 x, __m256 y, __m256 z) { return _mm256_fnmadd_ps(x, y, z); });
}
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {
  return by_halves(a, b, b, [](__m256 x, __m256 y, __m256) { return _mm256_max_ps(x, y); });
}
inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
  return by_halves(a, b, b, [](__m256 x, __m256 y, __m256) { return _mm256_min_ps(x, y); });
}
inline __m512 _mm512_abs_ps(__m512 x) {
  return from_lanes<__m512, float>([&](int i) { return std::fabs(x[i]); });
}
/// To a whole number: to the nearest (0), down (1) or up (2). Nobody asks for other multiples.
inline float round_to(float x, int control) {
  constexpr int quietly = _MM_FROUND_NO_EXC;
  switch (control & ~quietly) {
    case _MM_FROUND_TO_NEAREST_INT:
      return std::nearbyint(x);
    case _MM_FROUND_TO_NEG_INF:
      return std::floor(x);
    case _MM_FROUND_TO_POS_INF:
      return std::ceil(x);
  }
  std::abort();
}
inline __m512 _mm512_roundscale_ps(__m512 x, int control) {
  return from_lanes<__m512, float>([&](int i) { return round_to(x[i], control); });
}
inline __m512 _mm512_mask_roundscale_ps(__m512 other, __mmask16 m, __m512 x, int control) {
  return choose<float>(m, other, _mm512_roundscale_ps(x, control));
}
inline __m512 _mm512_reduce_ps(__m512 x, int control) {
  return from_lanes<__m512, float>(
      [&](int i) { return std::isinf(x[i]) ? 0.0f : x[i] - round_to(x[i], control); });
}
/// x 2^floor(y).
inline float scaled(float x, float y) {
  if (std::isnan(x) || std::isnan(y)) return x + y;
  if (std::isinf(y)) return y < 0 && std::isinf(x) ? std::nanf("") : x * (y < 0 ? 0.0f : y);
  return std::ldexp(x, static_cast<int>(std::floor(std::fmin(std::fmax(y, -1000.0f), 1000.0f))));
}
inline __m512 _mm512_scalef_ps(__m512 x, __m512 y) {
  return from_lanes<__m512, float>([&](int i) { return scaled(x[i], y[i]); });
}
/// As compilers do it: halves by halves.
template <class Op>
float reduce(__m512 x, const Op& op) {
  for (int n = 8; n >= 1; n /= 2)
    for (int i = 0; i < n; ++i) x[i] = op(x[i], x[i + n]);
  return x[0];
}
inline float _mm512_reduce_max_ps(__m512 x) {
  return reduce(x, [](float a, float b) { return a > b ? a : b; });
}
inline float _mm512_reduce_add_ps(__m512 x) {
  return reduce(x, [](float a, float b) { return a + b; });
}

// ---------------------------------------------------------------- pairs of bf16, and quadruples of bytes
// (The instructions take subnormal numbers for 0; these do not.)

inline uint16_t to_bf16(float x) {
  const uint32_t u = bits<uint32_t>(x);
  return static_cast<uint16_t>(std::isnan(x) ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline __m256bh _mm512_cvtneps_pbh(__m512 x) {
  return from_lanes<__m256bh, uint16_t>([&](int i) { return to_bf16(x[i]); });
}
inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  return from_lanes<__m512bh, uint16_t>([&](int i) { return to_bf16(i < 16 ? low[i] : high[i - 16]); });
}
inline __m256 _mm256_dpbf16_ps(__m256 sum, __m256bh a, __m256bh b) {
  const __m256i x = bits<__m256i>(a), y = bits<__m256i>(b),
                high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(x, high)),
                        _mm256_castsi256_ps(_mm256_and_si256(y, high)), sum);
  return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
                         _mm256_castsi256_ps(_mm256_slli_epi32(y, 16)), sum);
}
inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  return from_lanes<__m512, __m256>([&](int i) {
    return _mm256_dpbf16_ps(lane<__m256>(sum, i), lane<__m256bh>(a, i), lane<__m256bh>(b, i));
  });
}
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  return from_lanes<__m512i, int32_t>([&](int i) {
    int32_t s = lane<int32_t>(sum, i);
    for (int k = 4 * i; k < 4 * i + 4; ++k)
      s += lane<uint8_t>(unsigned_bytes, k) * lane<std::int8_t>(signed_bytes, k);
    return s;
  });
}

}  // namespace mla::emulation
