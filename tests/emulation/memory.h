#pragma once
// Loads, stores and constants.
#include <cstdlib>

#include "emulation/lanes.h"

namespace mla::emulation {

// ---------------------------------------------------------------- memory

template <class V>
V load(const void* p) {
  V x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class V>
void store(void* p, const V& x) {
  std::memcpy(p, &x, sizeof x);
}
inline void require_line(const void* p) {
  if (reinterpret_cast<std::uintptr_t>(p) % 64 != 0) std::abort();
}
/// Touches no byte of a lane whose bit is 0.
template <class V, class T>
V masked_load(uint64_t mask, const void* p) {
  V x{};
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (mask >> i & 1) std::memcpy(reinterpret_cast<T*>(&x) + i, static_cast<const T*>(p) + i, sizeof(T));
  return x;
}
template <class T, class V>
void masked_store(void* p, uint64_t mask, const V& x) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i)
    if (mask >> i & 1) std::memcpy(static_cast<T*>(p) + i, reinterpret_cast<const T*>(&x) + i, sizeof(T));
}

inline __m512 _mm512_loadu_ps(const void* p) {
  return load<__m512>(p);
}
inline __m512i _mm512_loadu_si512(const void* p) {
  return load<__m512i>(p);
}
inline __m512 _mm512_load_ps(const void* p) {
  require_line(p);
  return load<__m512>(p);
}
inline __m512i _mm512_load_si512(const void* p) {
  require_line(p);
  return load<__m512i>(p);
}
inline void _mm512_storeu_ps(void* p, __m512 x) {
  store(p, x);
}
inline void _mm512_storeu_si512(void* p, __m512i x) {
  store(p, x);
}
inline void _mm512_store_ps(void* p, __m512 x) {
  require_line(p);
  store(p, x);
}
inline void _mm512_store_si512(void* p, __m512i x) {
  require_line(p);
  store(p, x);
}
inline __m512 _mm512_maskz_loadu_ps(__mmask16 m, const void* p) {
  return masked_load<__m512, float>(m, p);
}
inline __m512i _mm512_maskz_loadu_epi16(__mmask32 m, const void* p) {
  return masked_load<__m512i, uint16_t>(m, p);
}
inline __m512i _mm512_maskz_loadu_epi8(__mmask64 m, const void* p) {
  return masked_load<__m512i, uint8_t>(m, p);
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 m, const void* p) {
  return masked_load<__m256i, uint16_t>(m, p);
}
inline void _mm512_mask_storeu_ps(void* p, __mmask16 m, __m512 x) {
  masked_store<float>(p, m, x);
}
inline void _mm512_mask_storeu_epi32(void* p, __mmask16 m, __m512i x) {
  masked_store<uint32_t>(p, m, x);
}
inline void _mm512_mask_storeu_epi16(void* p, __mmask32 m, __m512i x) {
  masked_store<uint16_t>(p, m, x);
}
inline void _mm256_mask_storeu_epi16(void* p, __mmask16 m, __m256i x) {
  masked_store<uint16_t>(p, m, x);
}

// ---------------------------------------------------------------- constants and casts

inline __m512 _mm512_set1_ps(float x) {
  return from_lanes<__m512, float>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi8(int x) {
  return from_lanes<__m512i, uint8_t>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi16(int x) {
  return from_lanes<__m512i, uint16_t>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi32(int x) {
  return from_lanes<__m512i, int32_t>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi64(long long x) {
  return from_lanes<__m512i, int64_t>([&](int) { return x; });
}
template <class... Int>
__m512i _mm512_set_epi32(Int... x) {
  static_assert(sizeof...(x) == 16);
  const int32_t values[] = {static_cast<int32_t>(x)...};
  return from_lanes<__m512i, int32_t>([&](int i) { return values[15 - i]; });
}
template <class... Int>
__m512i _mm512_set_epi64(Int... x) {
  static_assert(sizeof...(x) == 8);
  const int64_t values[] = {static_cast<int64_t>(x)...};
  return from_lanes<__m512i, int64_t>([&](int i) { return values[7 - i]; });
}
inline __m512 _mm512_setzero_ps() {
  return __m512{};
}
inline __m512i _mm512_setzero_si512() {
  return __m512i{};
}
inline __m512 _mm512_castsi512_ps(__m512i x) {
  return bits<__m512>(x);
}
inline __m512 _mm512_castpd_ps(__m512d x) {
  return bits<__m512>(x);
}
inline __m512i _mm512_castps_si512(__m512 x) {
  return bits<__m512i>(x);
}
inline __m512d _mm512_castps_pd(__m512 x) {
  return bits<__m512d>(x);
}
inline __m256 _mm512_castps512_ps256(__m512 x) {
  return bits<__m256>(x);
}
inline float _mm512_cvtss_f32(__m512 x) {
  return bits<float>(x);
}

}  // namespace mla::emulation
