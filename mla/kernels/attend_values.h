#pragma once
// The weighted sum of values of attend_math.h: lanes are features.
#include "mla/kernels/attend_tile.h"

namespace mla {
namespace {

/// Features [feature, feature + N W) of Q queries; `part` is how many of the last vector's there are.
struct Values {
  const Tile& t;
  const float* weights;  // of the block's first query, see Placing
  const float* shift;    // [Placing::query_place]
  float* acc;            // [Q][d_v]
  std::int64_t feature, part;
};

/// acc * shift + sum over rows [begin, end) of weight * value.
template <int P, int Q, int N, bool is_part>
__attribute__((noinline)) void value_block(const Values& b, std::int64_t begin, std::int64_t end) {
  using Place = Placing<P>;
  const auto load = [&](const float* p, int n) __attribute__((always_inline)) {
    return is_part && n == N - 1 ? Lanes::load_part(p + n * W, b.part) : Lanes::load(p + n * W);
  };
  const std::int64_t d_v = b.t.q.d_v, stride = b.t.rows.row_stride;
  float* const acc = b.acc + b.feature;
  Ahead* const ahead = b.t.ahead;
  F sum[Q][N];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    const F shift = Lanes::set(b.shift[Place::query_place(q)]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[q][n] = Lanes::mul(shift, load(acc + q * d_v, n));
  }
  const std::byte* const* runs = b.t.runs();
  const std::int64_t offset = b.t.rows.value_offset + b.feature * static_cast<std::int64_t>(sizeof(float));
  const auto add = [&](const std::byte* run, const float* weights, int j) __attribute__((always_inline)) {
    const float* const value = reinterpret_cast<const float*>(run + j * stride);
    const float* const weight = weights + Place::row_place(j);
    F x[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) x[n] = load(value, n);
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const F w = Lanes::set(weight[Place::query_place(q)]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[q][n] = Lanes::fma(w, x[n], sum[q][n]);
    }
  };
  constexpr int run_size = Place::vectors * W;
  std::int64_t r = begin / 4;
  for (; 4 * r + 4 <= end && 4 * r >= begin; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) add(runs[r] + offset, b.weights + r * run_size, j);
    for (int i = 0; ahead && i < 4 * N / 2; ++i) ahead->fetch();
  }
  for (; 4 * r < end; ++r) {  // runs of which not all rows count
    for (int j = 0; j < 4; ++j) {
      if (4 * r + j >= begin && 4 * r + j < end) add(runs[r] + offset, b.weights + r * run_size, j);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      if (is_part && n == N - 1)
        Lanes::store_part(acc + q * d_v + n * W, sum[q][n], b.part);
      else
        Lanes::store(acc + q * d_v + n * W, sum[q][n]);
    }
  }
}

/// The same for queries that see different numbers of rows: what all see together, the rest one by one.
template <int P, int Q, int N, bool is_part>
void value_queries(const Values& b, std::int64_t first_query) {
  std::int64_t seen[Q], least = b.t.count;
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    seen[q] = b.t.seen(first_query + q);
    least = seen[q] < least ? seen[q] : least;
  }
  value_block<P, Q, N, is_part>(b, 0, least);
  static constexpr float one[1] = {1.0f};
  for (int q = 0; q < Q; ++q) {
    if (seen[q] > least) {
      value_block<P, 1, N, is_part>(
          {b.t, b.weights + Placing<P>::query_place(q), one, b.acc + q * b.t.q.d_v, b.feature, b.part}, least,
          seen[q]);
    }
  }
}

/// All features of Q queries.
template <int P, int Q>
void value_features(const Tile& t, std::int64_t first_query, const float* weights, const float* shift,
                    float* acc) {
  constexpr int N = W == 16 ? (Q == 8 ? 2 : Q == 4 ? 4 : 8) : (Q == 4 ? 3 : Q == 2 ? 4 : 8);
  const std::int64_t d_v = t.q.d_v;
  Values b{t, weights, shift, acc, 0, W};
  for (; b.feature + N * W <= d_v; b.feature += N * W) value_queries<P, Q, N, false>(b, first_query);
  for (; b.feature + W <= d_v; b.feature += W) value_queries<P, Q, 1, false>(b, first_query);
  b.part = d_v - b.feature;
  if (b.part > 0) value_queries<P, Q, 1, true>(b, first_query);
}

/// All features of `queries` queries of a group, Q at a time.
template <int P, int Q>
void value_group(const Tile& t, std::int64_t first_query, std::int64_t queries, const float* weights,
                 const float* shift, float* acc) {
  std::int64_t q = 0;
  for (; q + Q <= queries; q += Q) {
    const int place = Placing<P>::query_place(static_cast<int>(q));
    value_features<P, Q>(t, first_query + q, weights + place, shift + place, acc + q * t.q.d_v);
  }
  if constexpr (Q > 1) {
    if (q < queries) {
      const int place = Placing<P>::query_place(static_cast<int>(q));
      value_group<P, Q / 2>(t, first_query + q, queries - q, weights + place, shift + place,
                            acc + q * t.q.d_v);
    }
  }
}

}  // namespace
}  // namespace mla
