#pragma once
// Packed queries and scores of avx512_vnni_attend.cpp, which alone includes this.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_pairs.h"
#include "mla/kernels/latent_row.h"

namespace mla {
namespace {

constexpr int tile_rows = 256;
constexpr int row_block = 8;           // rows that tiles are filled up to a multiple of
constexpr int most_runs = 3;           // of four rows, of one score block
constexpr int sum_start = 0x4B400000;  // the bits of 1.5 * 2^23
constexpr float sum_start_value = 12582912.0f;

// As assembly: gcc 12 spills accumulators that intrinsics take as integers here and as floats there. (Where
// AVX-512 is emulated, there are only the intrinsics.)

__attribute__((always_inline)) inline __m512i add_products_of_bytes(__m512i sum, __m512i unsigned_bytes,
                                                                    __m512i signed_bytes) {
#ifdef __AVX512VNNI__
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
  return sum;
#else
  return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
#endif
}

__attribute__((always_inline)) inline __m512i add_products_of_bf16(__m512i sum, __m512i a, __m512i b) {
#ifdef __AVX512BF16__
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#else
  return _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), as_pairs(a), as_pairs(b)));
#endif
}

/// How a group of queries lies in the 16 lanes of a register: P partial sums of each of 16 / P queries. A
/// step takes 4 P codes or 2 P bf16 values, and P rows' scores of the group fill a register. P = 2 makes
/// groups of 8 queries, P = 4 groups of 4 for what 8 does not divide.
template <int P>
struct Lanes {
  static constexpr int queries = 16 / P, codes = 4 * P, rope = 2 * P;
  static constexpr int bytes = 4 * P;  // of a query or a row in a step
};

/// A group's packed queries: the step size of each lane's query, then the steps of codes, then those of
/// rope.
constexpr std::int64_t line = 64;
template <int P>
std::int64_t group_bytes(std::int64_t d_c, std::int64_t d_r) {
  return line *
         (1 + (d_c + Lanes<P>::codes - 1) / Lanes<P>::codes + (d_r + Lanes<P>::rope - 1) / Lanes<P>::rope);
}

__mmask16 first_lanes(std::int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

// ---------------------------------------------------------------- packed queries

struct QueryStep {
  float step, inverse;  // step is NaN if any value is no number
};

QueryStep step_of(const float* x, std::int64_t d_c, std::int64_t d_r) {
  const auto largest = [](const float* values, std::int64_t count, float& nothing) {
    __m512 top = _mm512_setzero_ps(), zeros = _mm512_setzero_ps();
    for (std::int64_t i = 0; i < count; i += 16) {
      const __m512 v = _mm512_maskz_loadu_ps(first_lanes(count - i), values + i);
      top = _mm512_max_ps(top, _mm512_abs_ps(v));
      zeros = _mm512_fmadd_ps(v, _mm512_setzero_ps(), zeros);  // NaN or 0
    }
    nothing += _mm512_reduce_add_ps(zeros);
    return _mm512_reduce_max_ps(top);
  };
  float nothing = 0;
  const float top = largest(x, d_c, nothing) / 127.0f, rope = largest(x + d_c, d_r, nothing) * 0x1p-40f;
  float step = top > rope ? top : rope;
  step = step > 0x1p-100f ? step : 0x1p-100f;
  return {step + nothing, 1.0f / step};
}

template <int P>
void pack_query(const float* x, std::int64_t d_c, std::int64_t d_r, int lane, std::byte* group) {
  using L = Lanes<P>;
  const QueryStep step = step_of(x, d_c, d_r);
  for (int p = 0; p < P; ++p) std::memcpy(group + (lane * P + p) * 4, &step.step, 4);
  const __m512 inverse = _mm512_set1_ps(step.inverse);
  std::byte* to = group + line + lane * L::bytes;
  for (std::int64_t d = 0; d < d_c; d += L::codes, to += line) {
    const auto there = static_cast<__mmask16>(first_lanes(d_c - d) & ((1 << L::codes) - 1));
    const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + d), inverse));
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(code, _mm512_set1_epi32(128)));
    std::memcpy(to, &bytes, L::bytes);
  }
  for (std::int64_t d = 0; d < d_r; d += L::rope, to += line) {
    const auto there = static_cast<__mmask16>(first_lanes(d_r - d) & ((1 << L::rope) - 1));
    const __m256bh values =
        _mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_maskz_loadu_ps(there, x + d_c + d), inverse));
    std::memcpy(to, &values, L::bytes);
  }
}

template <int P>
std::byte* pack_groups(const float* const* queries, std::int64_t count, std::int64_t d_c, std::int64_t d_r,
                       std::byte* packed) {
  const std::int64_t bytes = group_bytes<P>(d_c, d_r);
  for (std::int64_t first = 0; first < count; first += Lanes<P>::queries, packed += bytes) {
    std::memset(packed, 0, static_cast<std::size_t>(bytes));
    for (int q = 0; q < Lanes<P>::queries && first + q < count; ++q)
      pack_query<P>(queries[first + q], d_c, d_r, q, packed);
  }
  return packed;
}

// ---------------------------------------------------------------- scores

/// What a tile's rows are multiplied by, and where their sums begin.
struct RowFactors {
  alignas(64) std::int32_t start[tile_rows][2];
  alignas(64) float scale[tile_rows], inverse[tile_rows], log2_scale[tile_rows];
};

struct ScoreBlock {
  const std::byte* runs[most_runs];
  std::int64_t row_stride;
  const std::byte* queries;  // of the first group, behind its step sizes
  std::int64_t group_bytes;
  std::int64_t d_c, d_r, rope_offset;
  const RowFactors* factors;
  int first;             // the rows' first one in the tile
  const __m512* scales;  // [G] softmax scale times log2 e times step size
  float* scores;         // of the tile
  std::int64_t group_scores;
  Fetch* fetch;
};

/// A block's rows: R pointers reach all 4 R, so that none is spilled.
template <int R>
struct BlockRows {
  const std::byte* runs[R];
  std::int64_t stride, stride3;

  explicit BlockRows(const ScoreBlock& b) : stride(b.row_stride), stride3(3 * b.row_stride) {
#pragma GCC unroll 3
    for (int i = 0; i < R; ++i) runs[i] = b.runs[i];
  }
  __attribute__((always_inline)) const std::byte* operator[](int r) const {
    return runs[r / 4] + (r % 4 == 3 ? stride3 : r % 4 * stride);
  }
  __attribute__((always_inline)) void advance(std::int64_t bytes) {
#pragma GCC unroll 3
    for (int i = 0; i < R; ++i) runs[i] += bytes;
  }
};

template <int P>
__m512i spread(const std::byte* from) {
  if constexpr (P == 2) {
    long long eight;
    std::memcpy(&eight, from, sizeof eight);
    return _mm512_set1_epi64(eight);
  } else {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
}

/// The same of the first `count` bytes; what lies behind them is not read.
template <int P>
__m512i spread_part(const std::byte* from, std::int64_t count) {
  std::byte part[16] = {};
  std::memcpy(part, from, static_cast<std::size_t>(count));
  return spread<P>(part);
}

/// From accumulators of P rows: lane P q + t = query q's sum for row t.
__m512 row_sums(const __m512i (&row)[2]) {
  const __m512 a = _mm512_castsi512_ps(row[0]), b = _mm512_castsi512_ps(row[1]);
  const __m512d x = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
                y = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  const __m512 starts = _mm512_set1_ps(2 * sum_start_value);
  return _mm512_add_ps(_mm512_sub_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), starts),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
__m512 pair_sums(__m512i row0, __m512i row1) {
  const __m512 a = _mm512_castsi512_ps(row0), b = _mm512_castsi512_ps(row1);
  const __m512 starts = _mm512_set1_ps(2 * sum_start_value);
  return _mm512_add_ps(_mm512_sub_ps(_mm512_unpacklo_ps(a, b), starts), _mm512_unpackhi_ps(a, b));
}
__m512 row_sums(const __m512i (&row)[4]) {
  const __m512d x = _mm512_castps_pd(pair_sums(row[0], row[1])),
                y = _mm512_castps_pd(pair_sums(row[2], row[3]));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

/// P values of consecutive rows in the lanes that row_sums fills.
template <int P>
__m512 per_row(const float* values) {
  return _mm512_castsi512_ps(spread<P>(reinterpret_cast<const std::byte*>(values)));
}

/// Where the sums of a row's lanes begin.
template <int P>
__attribute__((always_inline)) inline __m512i start_of(const ScoreBlock& b, int r) {
  long long starts;
  std::memcpy(&starts, b.factors->start[b.first + r], sizeof starts);
  const __m512i start = _mm512_set1_epi64(starts);
  return P == 2 ? start : _mm512_mask_mov_epi64(_mm512_set1_epi32(sum_start), 0x55, start);
}

/// log2 of the weights of P rows' codes for group g, the first of which is r.
template <int P>
__attribute__((always_inline)) inline void store_scores(const ScoreBlock& b, int r, int g,
                                                        const __m512i (&sums)[P]) {
  const __m512 scale = per_row<P>(b.factors->scale + b.first + r);
  const __m512 log2_scale = per_row<P>(b.factors->log2_scale + b.first + r);
  _mm512_store_ps(b.scores + g * b.group_scores + (b.first + r) / P * 16,
                  _mm512_fmadd_ps(_mm512_mul_ps(row_sums(sums), scale), b.scales[g], log2_scale));
}

/// A step of G groups and 4 R rows.
template <int P, int G, int R, class Add>
__attribute__((always_inline)) inline void score_step(BlockRows<R>& row, const std::byte*& queries,
                                                      std::int64_t group_stride, __m512i (&acc)[4 * R][G],
                                                      const Add& add) {
  __m512i q[G];
#pragma GCC unroll 2
  for (int g = 0; g < G; ++g) q[g] = _mm512_load_si512(queries + g * group_stride);
#pragma GCC unroll 12
  for (int r = 0; r < 4 * R; ++r) {
    const __m512i k = spread<P>(row[r]);
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[r][g] = add(acc[r][g], q[g], k);
  }
  queries += line;
  row.advance(Lanes<P>::bytes);
}

/// A step by the last `count` bytes of a part of the rows; what lies behind them may be anything.
template <int P, int G, int R, class Add>
__attribute__((always_inline)) inline void last_score_step(const BlockRows<R>& row, std::int64_t count,
                                                           const std::byte*& queries,
                                                           std::int64_t group_stride,
                                                           __m512i (&acc)[4 * R][G], const Add& add) {
#pragma GCC unroll 12
  for (int r = 0; r < 4 * R; ++r) {
    const __m512i k = spread_part<P>(row[r], count);
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[r][g] = add(acc[r][g], _mm512_load_si512(queries + g * group_stride), k);
  }
  queries += line;
}

/// Scores of G groups for R runs, as logarithms of the weights of the rows' codes: scores[g][row / P] as
/// row_sums gives them.
template <int P, int G, int R>
__attribute__((noinline)) void score_block(const ScoreBlock& b) {
  using L = Lanes<P>;
  const auto add_codes = [](__m512i sum, __m512i q, __m512i k) { return add_products_of_bytes(sum, q, k); };
  const auto add_rope = [](__m512i sum, __m512i q, __m512i k) { return add_products_of_bf16(sum, q, k); };
  __m512i acc[4 * R][G];
#pragma GCC unroll 12
  for (int r = 0; r < 4 * R; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[r][g] = start_of<P>(b, r);
  }
  BlockRows<R> row(b);
  Fetch fetch = *b.fetch;
  const std::byte* queries = b.queries;
  const std::int64_t group_stride = b.group_bytes;
  const std::int64_t codes_left = b.d_c % L::codes, rope_left = 2 * b.d_r % L::bytes;
  fetch.along(
      b.d_c / L::codes, [&]() __attribute__((always_inline)) {
        score_step<P, G, R>(row, queries, group_stride, acc, add_codes);
      });
  if (codes_left > 0) last_score_step<P, G, R>(row, codes_left, queries, group_stride, acc, add_codes);
  row.advance(b.rope_offset - b.d_c + codes_left);
  fetch.along(
      2 * b.d_r / L::bytes, [&]() __attribute__((always_inline)) {
        score_step<P, G, R>(row, queries, group_stride, acc, add_rope);
      });
  if (rope_left > 0) last_score_step<P, G, R>(row, rope_left, queries, group_stride, acc, add_rope);
  *b.fetch = fetch;
#pragma GCC unroll 6
  for (int r = 0; r < 4 * R; r += P) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      __m512i some[P];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) some[i] = acc[r + i][g];
      store_scores<P>(b, r, g, some);
    }
  }
}

/// Whether mixed_block can take a row's parts.
bool fits_mixed_block(std::int64_t d_c, std::int64_t d_r) {
  return d_c % Lanes<4>::codes == 0 && d_r % Lanes<4>::rope == 0;
}

/// Two steps of G groups of eight and one of a group of four, by 16 bytes of each row; the rows' broadcasts
/// for the four hide behind the products of the eights.
template <int G, class Add>
__attribute__((always_inline)) inline void mixed_step(BlockRows<2>& row, const std::byte*& eights,
                                                      std::int64_t group_stride, const std::byte*& fours,
                                                      __m512i (&acc)[row_block][G + 1], const Add& add) {
#pragma GCC unroll 2
  for (int part = 0; part < 2; ++part) {
    __m512i q[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) q[g] = _mm512_load_si512(eights + part * line + g * group_stride);
#pragma GCC unroll 8
    for (int r = 0; r < row_block; ++r) {
      const __m512i k = spread<2>(row[r] + 8 * part);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) acc[r][g] = add(acc[r][g], q[g], k);
    }
    if (part == 0) {
      const __m512i four = _mm512_load_si512(fours);
#pragma GCC unroll 8
      for (int r = 0; r < row_block; ++r) acc[r][G] = add(acc[r][G], four, spread<4>(row[r]));
    }
  }
  eights += 2 * line;
  fours += line;
  row.advance(16);
}

/// Scores of G groups of eight and one of four, for the same rows. REQUIRES fits_mixed_block.
template <int G>
__attribute__((noinline)) void mixed_block(const ScoreBlock& b, const ScoreBlock& four) {
  __m512i acc[row_block][G + 1];
#pragma GCC unroll 8
  for (int r = 0; r < row_block; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[r][g] = start_of<2>(b, r);
    acc[r][G] = start_of<4>(four, r);
  }
  BlockRows<2> row(b);
  Fetch fetch = *b.fetch;
  const std::byte *eights = b.queries, *fours = four.queries;
  const std::int64_t group_stride = b.group_bytes;
  fetch.along(
      b.d_c / 16, [&]() __attribute__((always_inline)) {
        mixed_step<G>(row, eights, group_stride, fours, acc,
                      [](__m512i sum, __m512i q, __m512i k) { return add_products_of_bytes(sum, q, k); });
      });
  row.advance(b.rope_offset - b.d_c);
  fetch.along(
      b.d_r / 8, [&]() __attribute__((always_inline)) {
        mixed_step<G>(row, eights, group_stride, fours, acc,
                      [](__m512i sum, __m512i q, __m512i k) { return add_products_of_bf16(sum, q, k); });
      });
  *b.fetch = fetch;
#pragma GCC unroll 4
  for (int r = 0; r < row_block; r += 2) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) store_scores<2>(b, r, g, {acc[r][g], acc[r + 1][g]});
  }
#pragma GCC unroll 2
  for (int r = 0; r < row_block; r += 4)
    store_scores<4>(four, r, 0, {acc[r][G], acc[r + 1][G], acc[r + 2][G], acc[r + 3][G]});
}

}  // namespace
}  // namespace mla
