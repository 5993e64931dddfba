#pragma once
// The softmax of avx512_vnni_attend.cpp, which alone includes this: of a group, on scores still in L1.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mla/kernels/avx512_fold.h"
#include "mla/kernels/avx512_vnni_scores.h"

namespace mla {
namespace {

constexpr float log2_255 = 7.99435344f;

/// What is kept of a group from tile to tile; P lanes belong to a query.
struct Running {
  alignas(
      64) float reference[16];  // of the powers of two that acc and sum count in; the same in a query's lanes
  float sum[16];                // of every P-th row
};

/// By what a query's sums so far are multiplied, and the integer sums that come to them.
struct Shift {
  float old[8], added[8];
  bool moves;  // any of `old` may not be 1
};

/// A query's reference follows its largest score only once that is ahead by so much: sums are f32, and it
/// rarely moves.
constexpr float most_ahead = 8.0f;

/// A register of whole numbers up to 255 from each of four score registers (P = 2), or two (P = 4), as the
/// value blocks want them: a query's even rows, its odd ones.
__m512i bytes_of(const __m512i (&w)[4]) {
  const __m512i low = _mm512_or_si512(w[0], _mm512_slli_epi32(w[1], 8));
  return _mm512_ternarylogic_epi32(low, _mm512_slli_epi32(w[2], 16), _mm512_slli_epi32(w[3], 24), 0xFE);
}
__m256i bytes_of(const __m512i (&w)[2]) {
  const __m128i a = _mm512_cvtusepi32_epi8(w[0]), b = _mm512_cvtusepi32_epi8(w[1]);
  const __m256i rows = _mm256_set_m128i(_mm_unpackhi_epi32(a, b), _mm_unpacklo_epi32(a, b));
  return _mm256_shuffle_epi8(
      rows, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)));
}

/// The largest score of each query, in all its lanes.
template <int P>
__m512 largest(const float* scores, int rows) {
  __m512 top = _mm512_set1_ps(-__builtin_inff()), other = top;
  for (int i = 0; i < rows / P; i += 2) {
    top = _mm512_max_ps(top, _mm512_load_ps(scores + i * 16));
    other = _mm512_max_ps(other, _mm512_load_ps(scores + i * 16 + 16));
  }
  top = _mm512_max_ps(top, other);
  top = _mm512_max_ps(top, _mm512_permute_ps(top, 0xB1));
  return P == 4 ? _mm512_max_ps(top, _mm512_permute_ps(top, 0x4E)) : top;
}

/// A register of sums of each query's P lanes.
template <int P>
__m512 sum_of_lanes(__m512 x) {
  x = _mm512_add_ps(x, _mm512_permute_ps(x, 0xB1));
  return P == 4 ? _mm512_add_ps(x, _mm512_permute_ps(x, 0x4E)) : x;
}

/// A tile's scores, [rows / P][16], and where their weights go, [rows / 8][query][even, odd rows].
struct ScoreTile {
  const float* scores;  // -inf where a query may not see a row
  int rows;
  const float* inverse;  // 1 / scale of each row
  std::uint32_t *weights, *remainders;
};

/// The weights of eight rows, in 255ths of the largest.
template <int P>
void weights_of(const ScoreTile& t, int first, __m512 reference, __m512 (&weights)[8 / P]) {
#pragma GCC unroll 4
  for (int i = 0; i < 8 / P; ++i)
    weights[i] = exp2(_mm512_sub_ps(_mm512_load_ps(t.scores + (first / P + i) * 16), reference));
}

/// For the lanes in `which`, weights rounded down and 256ths of what is left; for others, weights rounded to
/// nearest and 0.
template <int P>
void split_weights(const ScoreTile& t, __m512 reference, __mmask16 which) {
  constexpr int registers = 8 / P, block = Lanes<P>::queries * 2;
  for (int r = 0; r < t.rows; r += 8) {
    __m512 p[registers];
    weights_of<P>(t, r, reference, p);
    __m512i whole[registers], rest[registers];
#pragma GCC unroll 4
    for (int i = 0; i < registers; ++i) {
      whole[i] = _mm512_mask_cvttps_epi32(_mm512_cvtps_epi32(p[i]), which, p[i]);
      const __m512 left = _mm512_sub_ps(p[i], _mm512_cvtepi32_ps(whole[i]));
      rest[i] = _mm512_maskz_cvttps_epi32(which, _mm512_mul_ps(left, _mm512_set1_ps(256.0f)));
    }
    const auto bytes = bytes_of(whole), rest_bytes = bytes_of(rest);
    std::memcpy(t.weights + r / 8 * block, &bytes, sizeof bytes);
    std::memcpy(t.remainders + r / 8 * block, &rest_bytes, sizeof rest_bytes);
  }
}

/// A tile is peaked if its weights come to less than so many of the largest, unless the largest is less than
/// a part of what came before: then the error matters little.
constexpr float peaked_mass = 4 * 255.0f, least_part = 1.0f / 64;

/// Turns scores into byte weights and goes on with the sums. Returns whether there are remainders.
template <int P>
bool softmax_tile(const ScoreTile& t, Running& running, Shift& shift) {
  constexpr int registers = 8 / P;  // of scores for eight rows
  const __m512 infinite = _mm512_set1_ps(-__builtin_inff());
  // A query that sees nothing yet: any reference will do, as long as -inf minus it is -inf.
  const auto finite = [&](__m512 x) {
    return _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, infinite, _CMP_EQ_OQ), _mm512_setzero_ps());
  };
  const __m512 top = _mm512_sub_ps(largest<P>(t.scores, t.rows), _mm512_set1_ps(log2_255));
  const __m512 before = _mm512_load_ps(running.reference);
  const __mmask16 moves =
      _mm512_cmp_ps_mask(top, _mm512_add_ps(before, _mm512_set1_ps(most_ahead)), _CMP_GT_OQ);
  const __m512 after = _mm512_mask_mov_ps(before, moves, top);
  shift.moves = moves != 0;
  const __m512 old = _mm512_mask_mov_ps(_mm512_set1_ps(1.0f), moves,
                                        exp2(_mm512_sub_ps(before, finite(after)))),
               added = exp2(_mm512_sub_ps(top, finite(after)));
  const __m512 reference = finite(top);
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, mass = _mm512_setzero_ps();
  for (int r = 0; r < t.rows; r += 8) {
    __m512 p[registers];
    weights_of<P>(t, r, reference, p);
    __m512i whole[registers];
#pragma GCC unroll 4
    for (int i = 0; i < registers; ++i) {
      whole[i] = _mm512_cvtps_epi32(p[i]);
      mass = _mm512_add_ps(mass, p[i]);
      sum[i % 2] = _mm512_fmadd_ps(p[i], per_row<P>(t.inverse + r + i * P), sum[i % 2]);
    }
    const auto bytes = bytes_of(whole);
    std::memcpy(t.weights + r / 8 * Lanes<P>::queries * 2, &bytes, sizeof bytes);
  }
  _mm512_store_ps(running.reference, after);
  _mm512_store_ps(running.sum, _mm512_fmadd_ps(_mm512_load_ps(running.sum), old,
                                               _mm512_mul_ps(_mm512_add_ps(sum[0], sum[1]), added)));
  alignas(64) float lanes[2][16];
  _mm512_store_ps(lanes[0], old);
  _mm512_store_ps(lanes[1], added);
  for (int q = 0; q < Lanes<P>::queries; ++q) {
    shift.old[q] = lanes[0][q * P];
    shift.added[q] = lanes[1][q * P];
  }
  const __mmask16 peaked =
      _mm512_cmp_ps_mask(sum_of_lanes<P>(mass), _mm512_set1_ps(peaked_mass), _CMP_LT_OQ) &
      _mm512_cmp_ps_mask(added, _mm512_set1_ps(least_part), _CMP_GT_OQ);
  if (peaked) split_weights<P>(t, reference, peaked);
  return peaked != 0;
}

}  // namespace
}  // namespace mla
