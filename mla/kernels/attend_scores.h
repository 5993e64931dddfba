#pragma once
// Scores of attend_math.h and what the softmax makes of them: lanes are queries x partial sums.
#include "mla/kernels/attend_tile.h"

namespace mla {
namespace {

template <int P>
void reduce_run(F r0, F r1, F r2, F r3, float* scores) {
  if constexpr (P == 1) {
    Lanes::store(scores, r0);
    Lanes::store(scores + W, r1);
    Lanes::store(scores + 2 * W, r2);
    Lanes::store(scores + 3 * W, r3);
  } else {
    const F low = Lanes::add(Lanes::even(r0, r1), Lanes::odd(r0, r1));
    const F high = Lanes::add(Lanes::even(r2, r3), Lanes::odd(r2, r3));
    if constexpr (P == 2) {
      Lanes::store(scores, low);
      Lanes::store(scores + W, high);
    } else {
      Lanes::store(scores, Lanes::add_quads<P>(Lanes::add(Lanes::even(low, high), Lanes::odd(low, high))));
    }
  }
}

/// Scores, not yet scaled, of G groups and R runs of rows. A group's queries lie `query_stride` floats behind
/// those of the one before, its scores tile_runs runs.
template <int P, int G, int R>
__attribute__((noinline)) void score_block(const float* query, std::int64_t query_stride, std::int64_t d_qk,
                                           const std::byte* const* runs, std::int64_t row_stride,
                                           std::int64_t key_offset, Ahead* ahead, float* scores) {
  F acc[G][4 * R];
#pragma GCC unroll 3
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 12
    for (int r = 0; r < 4 * R; ++r) acc[g][r] = Lanes::zero();
  }
  const std::byte* at[R];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) at[r] = runs[r] + key_offset;
  const auto add = [&](const auto& key_of) __attribute__((always_inline)) {
    F x[G];
#pragma GCC unroll 3
    for (int g = 0; g < G; ++g) x[g] = Lanes::load(query + g * query_stride);
#pragma GCC unroll 12
    for (int r = 0; r < 4 * R; ++r) {
      const F key = Lanes::repeat<P>(key_of(r));
#pragma GCC unroll 3
      for (int g = 0; g < G; ++g) acc[g][r] = Lanes::fma(key, x[g], acc[g][r]);
    }
    query += W;
  };
  std::int64_t d = 0;
  for (; d + P <= d_qk; d += P) {
    if (W == 16 && ahead) {  // with 256 bits the loop has no room for it
#pragma GCC unroll 8
      for (int i = 0; i < P / 2; ++i) ahead->fetch();
    }
    add([&](int r) { return reinterpret_cast<const float*>(at[r / 4] + r % 4 * row_stride); });
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) at[r] += P * sizeof(float);
  }
  if (d < d_qk) {  // features that do not fill a broadcast, followed by zeros
    float rest[4 * R][P] = {};
    for (int r = 0; r < 4 * R; ++r)
      __builtin_memcpy(rest[r], at[r / 4] + r % 4 * row_stride,
                       static_cast<std::size_t>(d_qk - d) * sizeof(float));
    add([&](int r) { return rest[r]; });
  }
  constexpr int run_size = Placing<P>::vectors * W;
#pragma GCC unroll 3
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r)
      reduce_run<P>(acc[g][4 * r], acc[g][4 * r + 1], acc[g][4 * r + 2], acc[g][4 * r + 3],
                    scores + (g * tile_runs + r) * run_size);
  }
}

template <int P, int G>
void score_rows(const Tile& t, const float* query, std::int64_t query_stride, float* scores) {
  constexpr int most = G == 1 || W == 16 ? 3 : 1;  // runs that the registers hold
  const std::byte* const* runs = t.runs();
  const std::int64_t count = (t.count + AttendRows::run - 1) / AttendRows::run;
  constexpr int run_size = Placing<P>::vectors * W;
  std::int64_t r = 0;
  for (; r + most <= count; r += most)
    score_block<P, G, most>(query, query_stride, t.q.d_qk, runs + r, t.rows.row_stride, t.rows.key_offset,
                            t.ahead, scores + r * run_size);
  for (; r < count; ++r)
    score_block<P, G, 1>(query, query_stride, t.q.d_qk, runs + r, t.rows.row_stride, t.rows.key_offset,
                         t.ahead, scores + r * run_size);
}

// ---------------------------------------------------------------- softmax

/// A group's running sums: lanes as in a run's first vector, with P of 2 and more several lanes per query.
struct GroupState {
  float max[W];  // the same in all lanes of a query
  float sum[W];  // of the rows that a lane saw
};

/// Turns the scores of a tile into exp(scaled score - new maximum), 0 where a query does not see the row, and
/// writes exp(old maximum - new maximum) to shift.
template <int P>
void softmax(const Tile& t, std::int64_t first_query, std::int64_t queries, float* scores, GroupState& state,
             float* shift) {
  using Place = Placing<P>;
  constexpr int vectors = Place::vectors;
  float seen[W], row[vectors][W];
  std::int64_t least = t.count;
  for (int lane = 0; lane < W; ++lane) {
    const int q = Place::query_at(lane);
    const std::int64_t n = q < queries ? t.seen(first_query + q) : 0;
    least = n < least ? n : least;
    seen[lane] = static_cast<float>(n);
    for (int v = 0; v < vectors; ++v) row[v][lane] = static_cast<float>(Place::row_at(v, lane));
  }
  const std::int64_t count = (t.count + AttendRows::run - 1) / AttendRows::run;
  const F scale = Lanes::set(t.q.scale), hidden = Lanes::set(-__builtin_inff());
  const F old = Lanes::load(state.max);
  F top = old;
  for (std::int64_t r = 0; r < count; ++r) {
    for (int v = 0; v < vectors; ++v) {
      float* const at = scores + (r * vectors + v) * W;
      F score = Lanes::mul(Lanes::load(at), scale);
      if ((r + 1) * AttendRows::run > least) {
        const F index = Lanes::add(Lanes::load(row[v]), Lanes::set(static_cast<float>(r * AttendRows::run)));
        score = Lanes::where_less(index, Lanes::load(seen), score, hidden);
      }
      Lanes::store(at, score);
      top = Lanes::max(score, top);  // a NaN leaves the maximum alone and shows in the weight
    }
  }
  if constexpr (P >= 2) top = Lanes::max(top, Lanes::swap_pairs(top));
  if constexpr (P >= 4) top = Lanes::max(top, Lanes::swap_neighbours(top));
  const F fall = Lanes::exp(Lanes::sub(old, top));
  F sum = Lanes::mul(Lanes::load(state.sum), fall);
  for (std::int64_t i = 0; i < count * vectors; ++i) {
    const F weight = Lanes::exp(Lanes::sub(Lanes::load(scores + i * W), top));
    Lanes::store(scores + i * W, weight);
    sum = Lanes::add(sum, weight);
  }
  Lanes::store(state.max, top);
  Lanes::store(state.sum, sum);
  Lanes::store(shift, fall);
}

}  // namespace
}  // namespace mla
