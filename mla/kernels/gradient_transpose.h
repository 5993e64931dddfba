#pragma once
// The transposition that the vector instruction sets share, in 256-bit registers (see gradient.h).
#include <immintrin.h>

#include <cstdint>

namespace mla {
namespace {

/// Rows r and r + 4 of four columns.
inline __m256 gradient_lines(const float* row, std::int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row)), _mm_loadu_ps(row + 4 * stride), 1);
}

/// Eight rows of four columns.
inline void transpose_block(const float* from, std::int64_t stride, float* to, std::int64_t to_stride) {
  const __m256 a = gradient_lines(from, stride), b = gradient_lines(from + stride, stride);
  const __m256 c = gradient_lines(from + 2 * stride, stride), d = gradient_lines(from + 3 * stride, stride);
  const __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  _mm256_storeu_ps(to, _mm256_shuffle_ps(ab_low, cd_low, _MM_SHUFFLE(1, 0, 1, 0)));
  _mm256_storeu_ps(to + to_stride, _mm256_shuffle_ps(ab_low, cd_low, _MM_SHUFFLE(3, 2, 3, 2)));
  _mm256_storeu_ps(to + 2 * to_stride, _mm256_shuffle_ps(ab_high, cd_high, _MM_SHUFFLE(1, 0, 1, 0)));
  _mm256_storeu_ps(to + 3 * to_stride, _mm256_shuffle_ps(ab_high, cd_high, _MM_SHUFFLE(3, 2, 3, 2)));
}

void transpose(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t columns, float* to,
               std::int64_t to_stride) {
  const std::int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 4 * 4;
  for (std::int64_t r = 0; r < whole_rows; r += 8) {
    for (std::int64_t c = 0; c < whole_columns; c += 4)
      transpose_block(from + r * stride + c, stride, to + c * to_stride + r, to_stride);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[c * to_stride + r] = from[r * stride + c];
  }
}

}  // namespace
}  // namespace mla
