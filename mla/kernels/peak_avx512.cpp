// The ceilings of AVX-512, and of its products of bf16 pairs and of int8 quadruples; see peak.h.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "mla/kernels/peak_loops.h"

namespace mla {
namespace {

constexpr int chains = 24;

}  // namespace

std::int64_t peak_avx512_f32(std::int64_t rounds) {
  __m512 sums[chains];
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512 x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) {
      sums[i] = _mm512_fmadd_ps(x, y, sums[i]);
      asm volatile("" : "+v"(sums[i]));  // or equal chains would become one
    }
  }
  return rounds * chains * 16 * 2;
}

__attribute__((target("avx512bf16"))) std::int64_t peak_avx512_bf16(std::int64_t rounds) {
  __m512 sums[chains];
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  const __m512i pairs = _mm512_set1_epi16(0x3e80);  // 0.25
  const auto x = reinterpret_cast<__m512bh>(pairs);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) {
      sums[i] = _mm512_dpbf16_ps(sums[i], x, x);
      asm volatile("" : "+v"(sums[i]));
    }
  }
  return rounds * chains * 32 * 2;
}

__attribute__((target("avx512vnni"))) std::int64_t peak_avx512_int8(std::int64_t rounds) {
  __m512i sums[chains];
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i) sums[i] = _mm512_set1_epi32(i);
  const __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-5);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i) {
      sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
      asm volatile("" : "+v"(sums[i]));
    }
  }
  return rounds * chains * 64 * 2;
}

void read_avx512(const std::byte* data, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes / 4; at += 128) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512i value = _mm512_loadu_si512(data + i / 2 * (bytes / 4) + at + i % 2 * 64);
      asm volatile("" : : "v"(value));
    }
  }
}

}  // namespace mla
