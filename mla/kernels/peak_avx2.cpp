// The ceilings of AVX2 with FMA; see peak.h.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "mla/kernels/peak_loops.h"

namespace mla {

std::int64_t peak_avx2_f32(std::int64_t rounds) {
  constexpr int chains = 12;
  __m256 sums[chains];
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  const __m256 x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) {
      sums[i] = _mm256_fmadd_ps(x, y, sums[i]);
      asm volatile("" : "+x"(sums[i]));  // or equal chains would become one
    }
  }
  return rounds * chains * 8 * 2;
}

void read_avx2(const std::byte* data, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes / 4; at += 128) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      const std::byte* const from = data + i / 4 * (bytes / 4) + at + i % 4 * 32;
      const __m256i value = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      asm volatile("" : : "x"(value));
    }
  }
}

}  // namespace mla
