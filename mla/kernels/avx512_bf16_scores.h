#pragma once
// The scores of avx512_bf16_attend.cpp, which alone includes this: queries packed by groups against rows
// where they lie.
//
// The 16 lanes of a register are P partial sums of each of 16 / P queries: P = 2, 4, 8, 16 make groups of
// eight, four, two queries and one. A step takes 2 P features, a pair for each partial sum; a row's features
// come in by a broadcast of 4 P bytes. P rows' sums, reduced, fill a register with scores.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_pairs.h"
#include "mla/kernels/avx512_fp8_expand.h"

namespace mla {
namespace {

template <int P>
struct Lanes {
  static constexpr int queries = 16 / P;
  static constexpr int step = 2 * P;  // features
  static std::int64_t steps(std::int64_t d_qk) { return (d_qk + step - 1) / step; }
  /// Values of one packed group: [step][query][2 P features].
  static std::int64_t packed(std::int64_t d_qk) { return steps(d_qk) * 32; }
};

/// Calls use(Lanes<P>{}, queries of the kind) for each kind, in order.
template <class Use>
void for_each_kind(const QueryKinds& kinds, const Use& use) {
  use(Lanes<2>{}, kinds.eights);
  use(Lanes<4>{}, kinds.fours);
  use(Lanes<8>{}, kinds.twos);
  use(Lanes<16>{}, kinds.ones);
}

inline std::int64_t groups_of(std::int64_t queries, std::int64_t size) {
  return (queries + size - 1) / size;
}

// ---------------------------------------------------------------- packing

std::int64_t packed_bytes(const QueryKinds& kinds, std::int64_t d_qk, std::int64_t) {
  std::int64_t values = 0;
  for_each_kind(kinds, [&](auto lanes, std::int64_t queries) {
    values += groups_of(queries, lanes.queries) * lanes.packed(d_qk);
  });
  return values * static_cast<std::int64_t>(sizeof(bf16));
}

/// One query's values into its lanes: `step` of them, then those of the group's other queries, and so on.
template <int P>
void pack_query(const float* query, std::int64_t d_qk, bf16* out) {
  constexpr int step = Lanes<P>::step;
  for (std::int64_t d = 0; d < d_qk; d += 16) {
    const std::int64_t left = d_qk - d;
    const auto there = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1 << left) - 1);
    alignas(32) bf16 values[16];
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, query + d));
    std::memcpy(values, &rounded, sizeof values);
    for (std::int64_t i = 0; i < 16 && i < left;
         i += step) {  // whole steps: what is behind the last value is 0
      constexpr std::int64_t piece = step < 16 ? step : 16;
      const std::int64_t at = (d + i) / step * 32 + (d + i) % step;
      std::memcpy(out + at, values + i, piece * sizeof(bf16));
    }
  }
}

void pack(const float* const* rows, const QueryKinds& kinds, std::int64_t d_qk, std::int64_t d_v,
          void* packed) {
  std::memset(packed, 0, static_cast<std::size_t>(packed_bytes(kinds, d_qk, d_v)));
  bf16* out = static_cast<bf16*>(packed);
  for_each_kind(kinds, [&](auto lanes, std::int64_t queries) {
    constexpr int size = decltype(lanes)::queries;
    for (std::int64_t q = 0; q < queries; ++q) {
      pack_query<16 / size>(rows[q], d_qk, out + q / size * lanes.packed(d_qk) + q % size * lanes.step);
    }
    rows += queries;
    out += groups_of(queries, size) * lanes.packed(d_qk);
  });
}

// ---------------------------------------------------------------- reduction: lane P q + t = query q, row t
// of P

__m512 reduce_rows(const __m512 (&row)[2]) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

/// Within each 128-bit lane: the sums of four rows' lanes.
__m512 reduce_four(const __m512* row) {
  const __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(row[0], row[1]), _mm512_unpackhi_ps(row[0], row[1]));
  const __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(row[2], row[3]), _mm512_unpackhi_ps(row[2], row[3]));
  const __m512d a = _mm512_castps_pd(x), b = _mm512_castps_pd(y);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

/// 128-bit lanes (x0 + x1, x2 + x3, y0 + y1, y2 + y3).
__m512 add_neighbours(__m512 x, __m512 y) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD));
}

__m512 reduce_rows(const __m512 (&row)[4]) {
  return reduce_four(row);
}
__m512 reduce_rows(const __m512 (&row)[8]) {
  const __m512 both =
      add_neighbours(reduce_four(row), reduce_four(row + 4));  // rows 0-3 q0, q1, rows 4-7 q0, q1
  return _mm512_shuffle_f32x4(both, both, 0xD8);
}
__m512 reduce_rows(const __m512 (&row)[16]) {
  return add_neighbours(add_neighbours(reduce_four(row), reduce_four(row + 4)),
                        add_neighbours(reduce_four(row + 8), reduce_four(row + 12)));
}

// ---------------------------------------------------------------- blocks

/// 4 P bytes of a row, in every query's lanes.
template <int P>
__m512bh spread(const std::byte* row) {
  if constexpr (P == 2) {
    long long four;
    std::memcpy(&four, row, sizeof four);
    return as_pairs(_mm512_set1_epi64(four));
  } else if constexpr (P == 4) {
    return as_pairs(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row))));
  } else if constexpr (P == 8) {
    return as_pairs(_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))));
  } else {
    return as_pairs(_mm512_loadu_si512(row));
  }
}

struct ScoreRows {
  const std::byte* const* runs;
  std::int64_t stride;  // bytes from row to row of a run
  std::int64_t key_offset;
  std::int64_t d_qk;
  Expander* expander;  // makes the rows where they are not there yet
};

/// Steps of a block of R runs to be taken for each block of codes that is expanded meanwhile: as many as
/// spread those of the next R runs evenly over rows of 512 + 64 values, which is worth 7 % with 16 heads; 0
/// if the steps are too few. A step takes 2 P features. (A lone group has too few products to hide this.)
template <int P, int R>
constexpr int steps_between = (512 + 64) / (2 * P) / (4 * 4 * R);

/// Makes the next block's rows, each block of codes before `between` steps and one of fetching. Returns how
/// many steps were taken.
template <int R, int between, class Step>
__attribute__((always_inline)) inline std::int64_t make_next(Expander& expander, Fetch& fetch,
                                                             const Step& take_step) {
  const std::int64_t steps = expander.calls_to_make(4 * R) * between;
  expander.make(
      4 * R, [&]() __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int i = 0; i < between; ++i) take_step();
        fetch.step();
      });
  return steps;
}

/// Whether a block of R runs can make the next one's rows.
template <int R, int between>
bool makes_next(const Expander& expander, std::int64_t steps) {
  const std::int64_t calls = expander.calls_to_make(4 * R);
  return between > 0 && calls > 0 && calls * between <= steps;
}

/// Scores of G groups of queries for R runs of rows: scores[g][row / P] as reduce_rows gives them. With
/// `between`, see make_next.
template <int P, int G, int R, int between>
__attribute__((noinline)) void score_block(const bf16* queries, const ScoreRows& t, float* scores,
                                           std::int64_t group_stride, Fetch& to_fetch) {
  Fetch fetch = to_fetch;
  constexpr int step = Lanes<P>::step, rows = 4 * R;
  const std::int64_t group_values = Lanes<P>::packed(t.d_qk), stride = t.stride, stride3 = 3 * stride;
  const std::byte* at[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) at[r] = t.runs[r] + t.key_offset;
  __m512 acc[G][rows];
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[g][r] = _mm512_setzero_ps();
  }
  const auto add = [&](int g, int r, __m512bh q, __m512bh k) __attribute__((always_inline)) {
    acc[g][r] = _mm512_dpbf16_ps(acc[g][r], q, k);
  };
  const auto take_step = [&]() __attribute__((always_inline)) {
    __m512bh q[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) q[g] = as_pairs(_mm512_loadu_si512(queries + g * group_values));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m512bh k0 = spread<P>(at[r]), k1 = spread<P>(at[r] + stride);
      const __m512bh k2 = spread<P>(at[r] + 2 * stride), k3 = spread<P>(at[r] + stride3);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        add(g, 4 * r, q[g], k0);
        add(g, 4 * r + 1, q[g], k1);
        add(g, 4 * r + 2, q[g], k2);
        add(g, 4 * r + 3, q[g], k3);
      }
      at[r] += step * static_cast<int>(sizeof(bf16));
    }
    queries += 32;
  };
  const std::int64_t whole = t.d_qk / step;
  std::int64_t taken = 0;
  if constexpr (between > 0) taken = make_next<R, between>(*t.expander, fetch, take_step);
  fetch.along(whole - taken, take_step);
  to_fetch = fetch;
  const std::int64_t left = t.d_qk - whole * step;
  if (left > 0) {  // what lies behind the last features in the row may be anything
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r) {
      bf16 last[step] = {};
      std::memcpy(last, at[r / 4] + r % 4 * stride, static_cast<std::size_t>(left) * sizeof(bf16));
      const __m512bh k = spread<P>(reinterpret_cast<const std::byte*>(last));
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) add(g, r, as_pairs(_mm512_loadu_si512(queries + g * group_values)), k);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; r += P) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      __m512 some[P];
#pragma GCC unroll 16
      for (int i = 0; i < P; ++i) some[i] = acc[g][r + i];
      _mm512_store_ps(scores + g * group_stride + r / P * 16, reduce_rows(some));
    }
  }
}

/// One or two groups of eight and a group of four, whose 128-bit broadcasts would take more of the vector
/// units than its products if it came alone: scores[g][row / P], those of the four last. d_qk is a multiple
/// of 8.
template <int G, int R, int between>
__attribute__((noinline)) void score_mixed_block(const bf16* queries, const ScoreRows& t, float* eight_scores,
                                                 float* four_scores, std::int64_t group_stride,
                                                 Fetch& to_fetch) {
  Fetch fetch = to_fetch;
  constexpr int rows = 4 * R;
  const std::int64_t group_values = Lanes<2>::packed(t.d_qk), stride = t.stride, stride3 = 3 * stride;
  const bf16* fours = queries + G * group_values;
  const std::byte* at[R];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) at[r] = t.runs[r] + t.key_offset;
  __m512 acc[G][rows], four[rows];
#pragma GCC unroll 12
  for (int r = 0; r < rows; ++r) {
    four[r] = _mm512_setzero_ps();
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[g][r] = _mm512_setzero_ps();
  }
  const auto take_step = [&]() __attribute__((always_inline)) {
    __m512bh q[2][G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      q[0][g] = as_pairs(_mm512_loadu_si512(queries + g * group_values));
      q[1][g] = as_pairs(_mm512_loadu_si512(queries + g * group_values + 32));
    }
    const __m512bh q4 = as_pairs(_mm512_loadu_si512(fours));
#pragma GCC unroll 12
    for (int r = 0; r < rows; ++r) {
      const std::byte* key = at[r / 4] + (r % 4 == 3 ? stride3 : r % 4 * stride);
      const __m512bh front = spread<2>(key);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) acc[g][r] = _mm512_dpbf16_ps(acc[g][r], q[0][g], front);
      four[r] = _mm512_dpbf16_ps(four[r], q4, spread<4>(key));
      const __m512bh back = spread<2>(key + 8);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) acc[g][r] = _mm512_dpbf16_ps(acc[g][r], q[1][g], back);
    }
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) at[r] += 16;
    queries += 64;
    fours += 32;
  };
  std::int64_t taken = 0;
  if constexpr (between > 0) taken = make_next<R, between>(*t.expander, fetch, take_step);
  fetch.along(t.d_qk / 8 - taken, take_step);
  to_fetch = fetch;
#pragma GCC unroll 6
  for (int r = 0; r < rows; r += 2) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      const __m512 some[2] = {acc[g][r], acc[g][r + 1]};
      _mm512_store_ps(eight_scores + g * group_stride + r / 2 * 16, reduce_rows(some));
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < rows; r += 4) _mm512_store_ps(four_scores + r / 4 * 16, reduce_four(four + r));
}

/// Scores of G groups for `rows` rows, a multiple of 4 and of P.
template <int P, int G>
void score_tile(const bf16* queries, ScoreRows t, std::int64_t rows, float* scores, std::int64_t group_stride,
                Fetch& fetch) {
  std::int64_t done = 0;
  const auto block = [&](auto runs) __attribute__((always_inline)) {
    constexpr int R = decltype(runs)::value, between = G == 2 ? steps_between<P, R> : 0;
    t.expander->make_up_to(done += 4 * R);
    if (makes_next<R, between>(*t.expander, t.d_qk / (2 * P))) {
      score_block<P, G, R, between>(queries, t, scores, group_stride, fetch);
    } else {
      score_block<P, G, R, 0>(queries, t, scores, group_stride, fetch);
    }
    t.runs += R;
    scores += 4 * R / P * 16;
    rows -= 4 * R;
  };
  if constexpr (P == 16) {
    while (rows > 0) block(Count<4>{});
  } else if constexpr (G == 2) {
    while (rows >= 12 && rows != 16) block(Count<3>{});
    while (rows >= 8) block(Count<2>{});
    if (rows > 0) block(Count<1>{});
  } else {
    while (rows >= 24) block(Count<6>{});
    if (rows >= 16) block(Count<4>{});
    if (rows >= 8) block(Count<2>{});
    if constexpr (P <= 4) {
      if (rows > 0) block(Count<1>{});
    }
  }
}

/// The same for G groups of eight and the group of four behind them.
template <int G>
void score_mixed_tile(const bf16* queries, ScoreRows t, std::int64_t rows, float* scores,
                      std::int64_t group_stride, Fetch& fetch) {
  float* four_scores = scores + G * group_stride;
  std::int64_t done = 0;
  const auto block = [&](auto runs) __attribute__((always_inline)) {
    constexpr int R = decltype(runs)::value, between = steps_between<4, R>;
    t.expander->make_up_to(done += 4 * R);
    if (makes_next<R, between>(*t.expander, t.d_qk / 8)) {
      score_mixed_block<G, R, between>(queries, t, scores, four_scores, group_stride, fetch);
    } else {
      score_mixed_block<G, R, 0>(queries, t, scores, four_scores, group_stride, fetch);
    }
    t.runs += R;
    scores += 4 * R / 2 * 16;
    four_scores += 4 * R / 4 * 16;
    rows -= 4 * R;
  };
  if constexpr (G == 1) {
    while (rows >= 12 && rows != 16) block(Count<3>{});
  }
  while (rows >= 8) block(Count<2>{});
  if (rows > 0) block(Count<1>{});
}

}  // namespace
}  // namespace mla
