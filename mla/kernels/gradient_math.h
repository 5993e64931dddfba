#pragma once
// The kernels of attention in training (gradient.h), written once over the `Lanes` of each instruction set
// and to be included behind leaf_math.h, which defines F and W: everything here is in the anonymous namespace
// of the file that includes it.
//
// All products, two forward and five backward, are one loop, c[i][j] += sum over k of a[i][k] * b[k][j],
// whose b and c come in by vectors along j and whose a by broadcasts, so that it may as well lie transposed.
// Under the diagonal each takes only what some query of the block sees.
#include "mla/kernels/gradient.h"

namespace mla {
namespace {

// A block of sums in registers: 8 x 3 of 32 with AVX-512, 4 x 3 of 16 else.
constexpr int gradient_rows = W == 16 ? 8 : 4;
constexpr int gradient_vectors = 3;
/// Depth after which the sums move on to other rows, so that this much of b stays in the L1 cache.
constexpr std::int64_t gradient_depth = 96;
/// What a row's seen keys are filled up to with zeros: whole vectors and whole blocks of rows read them.
constexpr std::int64_t gradient_pad = W > gradient_rows ? W : gradient_rows;
static_assert(gradient_queries % gradient_rows == 0 && gradient_keys % gradient_pad == 0);

inline std::int64_t least(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}
inline std::int64_t most(std::int64_t a, std::int64_t b) {
  return a > b ? a : b;
}

/// Which part of a product the diagonal leaves.
enum class Seen {
  columns,      ///< rows are queries, columns keys
  depth_end,    ///< rows are queries, the depth is keys
  depth_begin,  ///< rows are keys, the depth is queries
};

struct GradientProduct {
  const float* a;
  std::int64_t a_stride;
  const float* b;
  std::int64_t b_stride;
  float* c;
  std::int64_t c_stride;
  std::int64_t rows, columns, depth;
  std::int64_t shift;  ///< as in GradientTile
};

/// A block of N vectors of columns from `column`, of rows from `row`, over the depth [begin, end). a is
/// [rows][depth], or if is_transposed [depth][rows].
template <int N, bool is_transposed>
__attribute__((noinline)) void gradient_block(const GradientProduct& p, std::int64_t row, std::int64_t column,
                                              std::int64_t begin, std::int64_t end, bool is_first) {
  constexpr int T = gradient_rows;
  float* const c = p.c + row * p.c_stride + column;
  F sums[T][N];
#pragma GCC unroll 8
  for (int i = 0; i < T; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j)
      sums[i][j] = is_first ? Lanes::zero() : Lanes::load(c + i * p.c_stride + j * W);
  }
  const std::int64_t a_row = is_transposed ? 1 : p.a_stride, a_depth = is_transposed ? p.a_stride : 1;
  const float* a = p.a + row * a_row + begin * a_depth;
  const float* b = p.b + begin * p.b_stride + column;
  for (std::int64_t k = begin; k < end; ++k, a += a_depth, b += p.b_stride) {
    F values[N];
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) values[j] = Lanes::load(b + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < T; ++i) {
      const F factor = Lanes::set(a[i * a_row]);
#pragma GCC unroll 3
      for (int j = 0; j < N; ++j) sums[i][j] = Lanes::fma(factor, values[j], sums[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < T; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) Lanes::store(c + i * p.c_stride + j * W, sums[i][j]);
  }
}

/// Columns [column, column + vectors W) of all rows, of which the depth [begin, end).
template <Seen seen, bool is_transposed, bool adds>
void gradient_panel(const GradientProduct& p, std::int64_t column, std::int64_t vectors, std::int64_t begin,
                    std::int64_t end) {
  const bool is_first = !adds && begin == 0;
  for (std::int64_t row = 0; row < p.rows; row += gradient_rows) {
    std::int64_t from = begin, to = end, count = vectors;
    const std::int64_t visible = row + gradient_rows + p.shift;  // keys that the block's last query sees
    if (seen == Seen::columns) count = least(vectors, (visible - column + W - 1) / W);
    if (seen == Seen::depth_end) to = least(end, visible);
    if (seen == Seen::depth_begin) from = most(begin, row - p.shift);
    if (from >= to) continue;
    if (count == 3) gradient_block<3, is_transposed>(p, row, column, from, to, is_first);
    if (count == 2) gradient_block<2, is_transposed>(p, row, column, from, to, is_first);
    if (count == 1) gradient_block<1, is_transposed>(p, row, column, from, to, is_first);
  }
}

/// c = a b, or if `adds` c += a b.
template <Seen seen, bool is_transposed, bool adds>
void gradient_product(const GradientProduct& p) {
  std::int64_t vectors = 0;
  for (std::int64_t column = 0; column < p.columns; column += vectors * W) {
    const std::int64_t left = (p.columns - column + W - 1) / W;
    vectors = left == 4 ? 2 : least(left, gradient_vectors);  // a lone vector has too few sums to keep busy
    for (std::int64_t begin = 0; begin < p.depth; begin += gradient_depth)
      gradient_panel<seen, is_transposed, adds>(p, column, vectors, begin,
                                                least(p.depth, begin + gradient_depth));
  }
}

/// Where the keys that a query of a tile sees end, and the zeros behind them: those that its block of rows
/// reads.
struct SeenKeys {
  std::int64_t seen, padded;
  SeenKeys(std::int64_t query, std::int64_t keys, std::int64_t shift) {
    const std::int64_t last = query / gradient_rows * gradient_rows + gradient_rows - 1;  // of the block
    const std::int64_t in_block = most(0, least(keys, last + shift + 1));
    seen = most(0, least(keys, query + shift + 1));
    padded = (in_block + gradient_pad - 1) / gradient_pad * gradient_pad;
  }
};

/// Zeros at [j, end), whole vectors.
inline void clear(float* x, std::int64_t j, std::int64_t end) {
  for (; j < end; j += W) Lanes::store(x + j, Lanes::zero());
}

/// Makes weights of a query's scores, by the largest score so far, which it raises; returns what sums so far
/// shrink by.
float forward_softmax(float* scores, SeenKeys keys, float scale, float& max, float& sum) {
  const F s = Lanes::set(scale);
  float lanes[W];
  F tops = Lanes::set(max);
  std::int64_t j = 0;
  for (; j + W <= keys.seen; j += W) tops = Lanes::max(tops, Lanes::mul(Lanes::load(scores + j), s));
  Lanes::store(lanes, tops);
  if (j < keys.seen) {
    Lanes::store_part(lanes, Lanes::max(tops, Lanes::mul(Lanes::load(scores + j), s)), keys.seen - j);
    tops = Lanes::load(lanes);
  }
  const float top = Lanes::reduce_max(tops);
  const F minus_top = Lanes::set(-top);
  F sums = Lanes::zero();
  for (j = 0; j < keys.seen; j += W) {
    const F weight = Lanes::exp(Lanes::fma(Lanes::load(scores + j), s, minus_top));
    if (j + W <= keys.seen) {
      Lanes::store(scores + j, weight);
      sums = Lanes::add(sums, weight);
    } else {
      Lanes::store(scores + j, Lanes::zero());
      Lanes::store_part(scores + j, weight, keys.seen - j);
      sums = Lanes::add(sums, Lanes::load(scores + j));
    }
  }
  clear(scores, j, keys.padded);
  Lanes::store(lanes, Lanes::exp(Lanes::set(max - top)));
  sum = sum * lanes[0] + Lanes::reduce_add(sums);
  max = top;
  return lanes[0];
}

void forward_tile(const ForwardTile& t) {
  const std::int64_t qk = gradient_stride(t.d_qk), v = gradient_stride(t.d_v), keys = gradient_keys;
  gradient_product<Seen::columns, false, false>(
      {t.q, qk, t.k_by_column, keys, t.weights, keys, t.queries, t.keys, t.d_qk, t.shift});
  for (std::int64_t i = 0; i < t.queries; ++i) {
    const SeenKeys of_query(i, t.keys, t.shift);
    if (of_query.seen == 0) {
      clear(t.weights + i * keys, 0, of_query.padded);
      continue;
    }
    const F shrink = Lanes::set(forward_softmax(t.weights + i * keys, of_query, t.scale, t.max[i], t.sum[i]));
    float* const out = t.out + i * v;
    for (std::int64_t j = 0; j < t.d_v; j += W)
      Lanes::store(out + j, Lanes::mul(Lanes::load(out + j), shrink));
  }
  gradient_product<Seen::depth_end, false, true>(
      {t.weights, keys, t.v, v, t.out, v, t.queries, t.d_v, t.keys, t.shift});
}

/// Makes weights of a query's scores, and gradients by scores of those by weights.
void gradient_softmax(float* scores, float* d_weights, SeenKeys keys, float scale, float lse, float delta) {
  const std::int64_t seen = keys.seen;
  const F s = Lanes::set(scale), minus_lse = Lanes::set(-lse), d = Lanes::set(delta);
  std::int64_t j = 0;
  for (; j < seen; j += W) {
    const F weight = Lanes::exp(Lanes::fma(Lanes::load(scores + j), s, minus_lse));
    const F d_score = Lanes::mul(Lanes::mul(weight, s), Lanes::sub(Lanes::load(d_weights + j), d));
    if (j + W <= seen) {
      Lanes::store(scores + j, weight);
      Lanes::store(d_weights + j, d_score);
    } else {
      Lanes::store(scores + j, Lanes::zero());
      Lanes::store(d_weights + j, Lanes::zero());
      Lanes::store_part(scores + j, weight, seen - j);
      Lanes::store_part(d_weights + j, d_score, seen - j);
    }
  }
  clear(scores, j, keys.padded);
  clear(d_weights, j, keys.padded);
}

void gradient_tile(const GradientTile& t) {
  const std::int64_t qk = gradient_stride(t.d_qk), v = gradient_stride(t.d_v), keys = gradient_keys;
  gradient_product<Seen::columns, false, false>(
      {t.q, qk, t.k_by_column, keys, t.weights, keys, t.queries, t.keys, t.d_qk, t.shift});
  gradient_product<Seen::columns, false, false>(
      {t.d_out, v, t.v_by_column, keys, t.d_scores, keys, t.queries, t.keys, t.d_v, t.shift});
  for (std::int64_t i = 0; i < t.queries; ++i)
    gradient_softmax(t.weights + i * keys, t.d_scores + i * keys, SeenKeys(i, t.keys, t.shift), t.scale,
                     t.lse[i], t.delta[i]);
  gradient_product<Seen::depth_begin, true, true>(
      {t.weights, keys, t.d_out, v, t.d_values, t.d_value_stride, t.keys, t.d_v, t.queries, t.shift});
  gradient_product<Seen::depth_end, false, true>(
      {t.d_scores, keys, t.k, qk, t.d_q, qk, t.queries, t.d_qk, t.keys, t.shift});
  gradient_product<Seen::depth_begin, true, true>(
      {t.d_scores, keys, t.q, qk, t.d_k, qk, t.keys, t.d_qk, t.queries, t.shift});
}

}  // namespace
}  // namespace mla
