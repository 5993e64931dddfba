#pragma once
// The weighted sum of values of attend_math.h: lanes are features.
#include "mla/kernels/attend_tile.h"

namespace mla {
namespace {

/// What the queries of some groups, scored together, are to sum up.
struct GroupValues {
  const Tile& t;
  std::int64_t first_query, queries;
  const float* weights;  // [group][tile_runs][Placing::vectors][W]
  const float* shift;    // [group][W], see Placing::query_place
  float* acc;            // [queries][d_v]
  bool all_seen;         // each query sees the whole tile
};

/// acc * shift + sum over rows [begin, end) of weight * value, of Q queries from acc's on. Features [feature,
/// feature + N W), or those there are if is_part. With few rows, what is done once for all of them shows:
/// hence so few arguments.
template <int P, int Q, int N, bool is_part>
__attribute__((noinline)) void value_block(const Tile& t, const float* weights, const float* shifts,
                                           float* acc, std::int64_t feature, std::int64_t begin,
                                           std::int64_t end) {
  using Place = Placing<P>;
  const std::int64_t d_v = t.q.d_v, stride = t.rows.row_stride, part = d_v - feature;
  const auto load = [&](const float* p, int n) __attribute__((always_inline)) {
    return is_part && n == N - 1 ? Lanes::load_part(p + n * W, part) : Lanes::load(p + n * W);
  };
  acc += feature;
  F sum[Q][N];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    const F shift = Lanes::set(shifts[Place::query_place(q)]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[q][n] = Lanes::mul(shift, load(acc + q * d_v, n));
  }
  const std::int64_t offset = t.rows.value_offset + feature * static_cast<std::int64_t>(sizeof(float));
  const auto add = [&](const std::byte* run, const float* weight, int j) __attribute__((always_inline)) {
    const auto* const value = reinterpret_cast<const float*>(run + j * stride);
    F x[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) x[n] = load(value, n);
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const F w = Lanes::set(weight[Place::row_place(j) + Place::query_place(q)]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[q][n] = Lanes::fma(w, x[n], sum[q][n]);
    }
  };
  constexpr int run_size = Place::vectors * W;
  const std::byte* const* runs = t.runs();
  std::int64_t r = begin / 4;
  for (; 4 * r + 4 <= end && 4 * r >= begin; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) add(runs[r] + offset, weights + r * run_size, j);
    for (int i = 0; W == 16 && t.ahead && i < 4 * N / 2; ++i) t.ahead->fetch();
  }
  for (; 4 * r < end; ++r) {  // runs of which not all rows count
    for (int j = 0; j < 4; ++j) {
      if (4 * r + j >= begin && 4 * r + j < end) add(runs[r] + offset, weights + r * run_size, j);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      if (is_part && n == N - 1)
        Lanes::store_part(acc + q * d_v + n * W, sum[q][n], part);
      else
        Lanes::store(acc + q * d_v + n * W, sum[q][n]);
    }
  }
}

/// The same for queries of `v` from `query` on, which may see different numbers of rows: what all see
/// together, the rest one by one.
template <int P, int Q, int N, bool is_part>
void value_queries(const GroupValues& v, std::int64_t query, const float* weights, const float* shifts,
                   std::int64_t feature) {
  const Tile& t = v.t;
  float* const acc = v.acc + query * t.q.d_v;
  if (v.all_seen) return value_block<P, Q, N, is_part>(t, weights, shifts, acc, feature, 0, t.count);
  std::int64_t seen[Q], least = t.count;
  for (int q = 0; q < Q; ++q) {
    seen[q] = t.seen(v.first_query + query + q);
    least = seen[q] < least ? seen[q] : least;
  }
  value_block<P, Q, N, is_part>(t, weights, shifts, acc, feature, 0, least);
  static constexpr float one[1] = {1.0f};
  for (int q = 0; q < Q; ++q) {
    if (seen[q] > least)
      value_block<P, 1, N, is_part>(t, weights + Placing<P>::query_place(q), one, acc + q * t.q.d_v, feature,
                                    least, seen[q]);
  }
}

/// The same for a group's queries [query, end) of `v`, Q at a time. Weights and shifts are the group's.
template <int P, int Q, int N, bool is_part>
void value_group(const GroupValues& v, std::int64_t query, std::int64_t end, const float* weights,
                 const float* shifts, std::int64_t feature) {
  for (; query + Q <= end; query += Q) {
    const int place = Placing<P>::query_place(static_cast<int>(query % Placing<P>::queries));
    value_queries<P, Q, N, is_part>(v, query, weights + place, shifts + place, feature);
  }
  if constexpr (Q > 1) {
    if (query < end) value_group<P, Q / 2, N, is_part>(v, query, end, weights, shifts, feature);
  }
}

/// N vectors of features of all groups: this piece of the tile's rows stays in L1 meanwhile.
template <int P, int N, bool is_part>
void value_piece(const GroupValues& v, std::int64_t feature) {
  constexpr int g_queries = Placing<P>::queries, Q = W == 8 && g_queries == 8 ? 4 : g_queries;
  for (std::int64_t g = 0; g * g_queries < v.queries; ++g) {
    const std::int64_t end = (g + 1) * g_queries;
    value_group<P, Q, N, is_part>(v, g * g_queries, end < v.queries ? end : v.queries,
                                  v.weights + g * tile_runs * Placing<P>::vectors * W, v.shift + g * W,
                                  feature);
  }
}

/// All features of all groups.
template <int P>
void value_groups(const GroupValues& v) {
  constexpr int g_queries = Placing<P>::queries;
  constexpr int N = W == 16 ? (g_queries == 8   ? 2
                               : g_queries == 4 ? 4
                                                : 8)
                            : (g_queries >= 4   ? 3
                               : g_queries == 2 ? 4
                                                : 8);
  const std::int64_t d_v = v.t.q.d_v;
  std::int64_t feature = 0;
  // One vector alone would leave the CPU waiting for its sums: rather the last N + 1 as pairs.
  for (; feature + N * W <= d_v && d_v - feature != (N + 1) * W; feature += N * W)
    value_piece<P, N, false>(v, feature);
  for (; feature + 2 * W <= d_v; feature += 2 * W) value_piece<P, 2, false>(v, feature);
  for (; feature + W <= d_v; feature += W) value_piece<P, 1, false>(v, feature);
  if (feature < d_v) value_piece<P, 1, true>(v, feature);
}

}  // namespace
}  // namespace mla
