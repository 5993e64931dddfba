#pragma once
// The softmax of avx512_bf16_attend.cpp, which alone includes this: of a group of queries, on scores that are
// still in L1.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_values.h"
#include "mla/kernels/avx512_fold.h"

namespace mla {
namespace {

/// What is kept of a group from tile to tile; P lanes belong to a query.
struct Running {
  __m512 reference;  // weights are 2^(score - reference); the same in all lanes of a query
  __m512 sum;        // of every P-th row's weights
};

/// The same in all lanes of a query: the largest of them.
template <int P>
__m512 largest(__m512 x) {
  x = _mm512_max_ps(x, _mm512_permute_ps(x, 0xB1));
  if constexpr (P >= 4) x = _mm512_max_ps(x, _mm512_permute_ps(x, 0x4E));
  if constexpr (P >= 8) x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xB1));
  if constexpr (P == 16) x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0x4E));
  return x;
}

/// Rounds a register of weights, lane P q + t, and stores them as pairs of rows: out[pair][query].
template <int P>
void store_pairs(__m512 weights, std::uint32_t* out, std::int64_t stride) {
  const __m256i pairs = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weights));  // [query][P / 2 pairs]
  if constexpr (P == 2) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), pairs);
  } else if constexpr (P == 4) {
    const __m256i sorted = _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(sorted));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + stride), _mm256_extracti128_si256(sorted, 1));
  } else {
    constexpr int queries = 16 / P;
    std::uint32_t each[8];
    std::memcpy(each, &pairs, sizeof each);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) out[i % (P / 2) * stride + i / (P / 2)] = each[i];
    static_assert(queries <= 2);
  }
}

/// Of each lane, the largest of `count` registers; four at a time, since each maximum waits for the one
/// before.
inline __m512 largest_of(const float* scores, std::int64_t count) {
  __m512 top[4];
  for (__m512& t : top) t = _mm512_set1_ps(-__builtin_inff());
  std::int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) top[k] = _mm512_max_ps(top[k], _mm512_load_ps(scores + (i + k) * 16));
  }
  for (; i < count; ++i) top[0] = _mm512_max_ps(top[0], _mm512_load_ps(scores + i * 16));
  return _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3]));
}

/// Turns the scores of `rows` rows, [rows / P][16], into weights, [rows / 2][stride] of bf16 pairs. Scores
/// that a query may not see are -inf. A query's reference moves only when a score exceeds it by 8: then
/// returns true, and `shift` is by how much the query's sums so far must be multiplied. `top` is the largest
/// score of each query, times `scale`.
template <int P>
bool softmax_tile(const float* scores, std::int64_t rows, float scale, Running& running,
                  std::uint32_t* weights, std::int64_t stride, __m512& shift, __m512& top) {
  const __m512 unseen = _mm512_set1_ps(-__builtin_inff()), factor = _mm512_set1_ps(scale);
  const std::int64_t count = rows / P;
  top = _mm512_mul_ps(largest<P>(largest_of(scores, count)), factor);
  const __mmask16 grows =
      _mm512_cmp_ps_mask(top, _mm512_add_ps(running.reference, _mm512_set1_ps(8.0f)), _CMP_GT_OQ);
  if (grows) {
    // Where nothing was seen before, the reference is -inf and the sums are 0, whatever multiplies them.
    const __m512 moved = _mm512_maskz_sub_ps(grows, running.reference, top);
    shift = exp2(_mm512_max_ps(moved, _mm512_set1_ps(-200.0f)));
    shift = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), grows, shift);
    running.reference = _mm512_mask_mov_ps(running.reference, grows, top);
    running.sum = _mm512_mul_ps(running.sum, shift);
  }
  // A query that has seen nothing yet: any reference will do, as long as -inf minus it is -inf.
  const __mmask16 sees = _mm512_cmp_ps_mask(running.reference, unseen, _CMP_NEQ_UQ);
  const __m512 reference = _mm512_maskz_mov_ps(sees, running.reference);
  // Kept here: in memory, each step would wait for the one before to be stored. Two: it waits for the add.
  __m512 even = running.sum, odd = _mm512_setzero_ps();
  const auto weigh = [&](std::int64_t i, __m512 & sum) __attribute__((always_inline)) {
    const __m512 p = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + i * 16), factor, reference));
    sum = _mm512_add_ps(sum, p);
    store_pairs<P>(p, weights + i * (P / 2) * stride, stride);
  };
  std::int64_t i = 0;
#pragma GCC unroll 2
  for (; i + 2 <= count; i += 2) {
    weigh(i, even);
    weigh(i + 1, odd);
  }
  if (i < count) weigh(i, even);
  running.sum = _mm512_add_ps(even, odd);
  return grows != 0;
}

// ---------------------------------------------------------------- sums of splits

/// The features of a query's sums: acc is [d / 32][chunk_stride], its first 32 lanes the query's.
struct LoadFeatures {
  const float* acc;
  std::int64_t chunk_stride;

  __attribute__((always_inline)) void operator()(std::int64_t d, __m512 (&x)[2]) const {
    const float* chunk = acc + d / 32 * chunk_stride;
    x[0] = _mm512_load_ps(chunk);
    x[1] = _mm512_load_ps(chunk + 16);
    to_order(x[0], x[1]);
  }
};

/// The sums of a query that has lanes [lane, lane + partial_sums) of a group's.
StateSums<LoadFeatures> query_sums(const Running& running, std::int64_t lane, int partial_sums,
                                   LoadFeatures load) {
  float references[16], sums[16], sum = 0.0f;
  _mm512_storeu_ps(references, running.reference);
  _mm512_storeu_ps(sums, running.sum);
  for (int p = 0; p < partial_sums; ++p) sum += sums[lane + p];
  return {references[lane], sum, load};
}

}  // namespace
}  // namespace mla
