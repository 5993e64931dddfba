#pragma once
// Dot products of weight rows with tokens, written once over the operands' `Ops`: everything here is in the
// anonymous namespace of the instruction-set file that includes it.
//
// Lanes are tokens x 2 partial sums. A step takes 8 bytes of each weight row, by 64-bit broadcasts from the
// row itself, and of each token, packed as [step][tokens][8 bytes]. One token alone is summed alike, four
// rows side by side.
//
// Ops has: Weight and Token; F, a vector of f32 sums; X, one of operands; width, the sums in F; run, how many
// rows times dot_groups fit into the registers; chunk, bytes of a row after which sums move on to other
// rows, so that these parts of tokens stay in a cache; zero, load and store of F, load_tokens(p), repeat(p)
// for 8 bytes over and over, fma(w, x, sums); even(a, b) and odd(a, b), _mm_shuffle_ps with (2, 0, 2, 0) and
// (3, 1, 3, 1), and add. For one token: Line, 256 bits of operands; line(low, high), 16 bytes of two rows;
// `pieces`, and split(ac, bd, x[pieces]), which deals 16 bytes of the rows a, b, c, d out as steps
// [a b | c d]; fma_line(w, x, sums); repeat_token(p), 8 bytes over and over as Line.
#include <immintrin.h>

#include "mla/kernels/product.h"

namespace mla {
namespace {

constexpr std::int64_t dot_quad = 4;  // rows of a lone token's block

template <class Ops>
using TileOf = DotTile<typename Ops::Weight, typename Ops::Token>;

/// Weight rows; those beyond the last one are the last one again, and their results are not stored.
template <class Ops, int count>
struct RowRun {
  const typename Ops::Weight* at[count];
  std::int64_t valid;
  RowRun(const TileOf<Ops>& t, std::int64_t first) : valid(t.rows - first) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      at[i] = t.weights + (first + (i < valid ? i : valid - 1)) * t.weight_stride;
  }
};

/// Values of each row from `d` to the end of its depth, followed by zeros: what lies behind is not read.
template <class Ops, int count, int size>
struct RowTails {
  alignas(16) typename Ops::Weight values[count][size] = {};
  RowTails(const RowRun<Ops, count>& rows, std::int64_t d, std::int64_t depth) {
    for (int i = 0; i < count; ++i) {
      for (std::int64_t j = d; j < depth; ++j) values[i][j - d] = rows.at[i][j];
    }
  }
};

/// The first `n` of 4 values.
void store_part4(float* p, __m128 value, std::int64_t n) {
  if (n >= 4) return _mm_storeu_ps(p, value);
  alignas(16) float values[4];
  _mm_store_ps(values, value);
  for (std::int64_t i = 0; i < n; ++i) p[i] = values[i];
}

/// Adds the partial sums of four rows and a group of tokens, and stores them.
template <class Ops, class Sums>
void finish_rows(const TileOf<Ops>& t, Sums row0, Sums row1, Sums row2, Sums row3, std::int64_t first,
                 std::int64_t token) {
  const Sums low = Ops::add(Ops::even(row0, row1), Ops::odd(row0, row1));  // t0r0 t1r0 t0r1 t1r1 t2r0 ...
  const Sums high = Ops::add(Ops::even(row2, row3), Ops::odd(row2, row3));
  alignas(64) float lanes[2][Ops::width];
  Ops::store(lanes[0], Ops::even(low, high));
  Ops::store(lanes[1], Ops::odd(low, high));
  for (std::int64_t i = 0; i < Ops::width / 2 && token + i < t.num_tokens; ++i)
    store_part4(t.y + (token + i) * t.y_stride + first, _mm_load_ps(lanes[i % 2] + i / 2 * 4),
                t.rows - first);
}

/// Depth [begin, end) of Ops::run rows from `first` and of the G groups of the set of tokens from `token`.
/// Sums that are not yet complete lie in `partial` [G][run].
template <class Ops, int G>
__attribute__((noinline)) void dot_block(const TileOf<Ops>& t, std::int64_t first, std::int64_t token,
                                         std::int64_t begin, std::int64_t end, float* partial) {
  using Sums = typename Ops::F;
  using X = typename Ops::X;
  constexpr int run = Ops::run;
  constexpr std::int64_t step = dot_step<typename Ops::Token>, width = Ops::width;
  const RowRun<Ops, run> rows(t, first);
  Sums acc[G][run];
#pragma GCC unroll 3
  for (int g = 0; g < G; ++g) {
#pragma GCC unroll 8
    for (int i = 0; i < run; ++i)
      acc[g][i] = begin == 0 ? Ops::zero() : Ops::load(partial + (g * run + i) * width);
  }
  const std::int64_t stride = set_tokens(t.num_tokens, width / 2) * step;
  const auto* tokens = t.tokens + token * packed_depth(t.depth) + begin / step * stride;
  const auto add = [&](const auto& weights_of) __attribute__((always_inline)) {
    X x[G];
#pragma GCC unroll 3
    for (int g = 0; g < G; ++g) x[g] = Ops::load_tokens(tokens + g * (width / 2) * step);
#pragma GCC unroll 8
    for (int i = 0; i < run; ++i) {
      const X w = Ops::repeat(weights_of(i));
#pragma GCC unroll 3
      for (int g = 0; g < G; ++g) acc[g][i] = Ops::fma(w, x[g], acc[g][i]);
    }
    tokens += stride;
  };
  std::int64_t d = begin;
  const std::byte* ahead = t.ahead + (first / run * (t.depth / step) + begin / step) * t.ahead_step;
  for (; d + step <= end; d += step, ahead += t.ahead_step) {
    add([&](int i) { return rows.at[i] + d; });
    __builtin_prefetch(ahead, 0, 2);
  }
  if (d < end) {
    const RowTails<Ops, run, step> tails(rows, d, end);
    add([&](int i) { return tails.values[i]; });
  }
#pragma GCC unroll 3
  for (int g = 0; g < G; ++g) {
    if (end < t.depth) {
#pragma GCC unroll 8
      for (int i = 0; i < run; ++i) Ops::store(partial + (g * run + i) * width, acc[g][i]);
      continue;
    }
#pragma GCC unroll 2
    for (int i = 0; i < run; i += 4) {
      if (i < rows.valid) {
        finish_rows<Ops>(t, acc[g][i], acc[g][i + 1], acc[g][i + 2], acc[g][i + 3], first + i,
                         token + g * (width / 2));
      }
    }
  }
}

/// Rows [first, first + 4 R) of one token. Bound by the memory that the weights lie in.
template <class Ops, int R>
__attribute__((noinline)) void dot_one(const TileOf<Ops>& t, std::int64_t first) {
  using Weight = typename Ops::Weight;
  using Line = typename Ops::Line;
  constexpr std::int64_t line = 16 / static_cast<std::int64_t>(sizeof(Weight));  // values
  constexpr int pieces = Ops::pieces;
  const RowRun<Ops, 4 * R> rows(t, first);
  __m256 acc[R];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) acc[r] = _mm256_setzero_ps();
  const auto add = [&](std::int64_t d, const auto& weights_of) __attribute__((always_inline)) {
    Line x[pieces];
#pragma GCC unroll 4
    for (int i = 0; i < pieces; ++i) x[i] = Ops::repeat_token(t.tokens + d + i * line / pieces);
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      Line w[pieces];
      Ops::split(Ops::line(weights_of(4 * r), weights_of(4 * r + 2)),
                 Ops::line(weights_of(4 * r + 1), weights_of(4 * r + 3)), w);
#pragma GCC unroll 4
      for (int i = 0; i < pieces; ++i) acc[r] = Ops::fma_line(w[i], x[i], acc[r]);
    }
  };
  std::int64_t d = 0;
  // The rows behind these are fetched in the order of their addresses: rows of whole pages lie in the same
  // set of L1, and side by side their streams keep each other from being fetched ahead.
  const bool goes_on = t.weight_stride == t.depth && first + 8 * R <= t.rows;
  const Weight* ahead = rows.at[0] + (goes_on ? 4 * R * t.weight_stride : 0);
  for (; d + line <= t.depth; d += line) {
    add(d, [&](int i) { return rows.at[i] + d; });
#pragma GCC unroll 2
    for (int i = 0; i < R; ++i, ahead += 4 * line) __builtin_prefetch(ahead, 0, 2);
  }
  if (d < t.depth) {
    const RowTails<Ops, 4 * R, line> tails(rows, d, t.depth);
    add(d, [&](int i) { return tails.values[i]; });
  }
  for (int r = 0; r < R; ++r) {
    alignas(32) float sums[8];
    _mm256_store_ps(sums, acc[r]);
    for (int i = 0; i < 4 && 4 * r + i < rows.valid; ++i)
      t.y[first + 4 * r + i] = sums[2 * i] + sums[2 * i + 1];
  }
}

template <class Ops>
void dot_lone_token(const TileOf<Ops>& t) {
  std::int64_t r = 0;
  for (; r + dot_quad < t.rows; r += 2 * dot_quad) dot_one<Ops, 2>(t, r);
  if (r < t.rows) dot_one<Ops, 1>(t, r);
}

/// Depth [begin, end) of all rows and of a set of tokens from `token`, of `groups` groups.
template <class Ops>
void dot_rows(const TileOf<Ops>& t, std::int64_t token, std::int64_t groups, std::int64_t begin,
              std::int64_t end, float* partial) {
  for (std::int64_t r = 0; r < t.rows; r += Ops::run, partial += Ops::run * dot_groups * Ops::width) {
    if (groups == 1)
      dot_block<Ops, 1>(t, r, token, begin, end, partial);
    else if (groups == 2)
      dot_block<Ops, 2>(t, r, token, begin, end, partial);
    else
      dot_block<Ops, 3>(t, r, token, begin, end, partial);
  }
}

/// Asks for the lines of y, which are probably in no cache: their sums are stored in short pieces.
template <class Ops>
void fetch_results(const TileOf<Ops>& t) {
  constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(float));
  for (std::int64_t i = 0; i < t.num_tokens; ++i) {
    for (std::int64_t r = 0; r < t.rows; r += line) __builtin_prefetch(t.y + i * t.y_stride + r, 1, 3);
  }
}

template <class Ops>
void dot(const TileOf<Ops>& t) {
  if (t.num_tokens == 1) return dot_lone_token<Ops>(t);
  fetch_results<Ops>(t);
  constexpr std::int64_t group = Ops::width / 2,
                         chunk = Ops::chunk / static_cast<std::int64_t>(sizeof(typename Ops::Weight));
  alignas(64) float partial[parts(dot_tokens, dot_groups * group)][dot_outputs * dot_groups * Ops::width];
  const std::int64_t set = set_tokens(t.num_tokens, group);
  std::int64_t begin = 0;
  do {
    const std::int64_t end = t.depth - begin > chunk ? begin + chunk : t.depth;
    for (std::int64_t s = 0; s * set < t.num_tokens; ++s) {
      const std::int64_t left = parts(t.num_tokens - s * set, group);
      dot_rows<Ops>(t, s * set, left < set / group ? left : set / group, begin, end, partial[s]);
    }
    begin = end;
  } while (begin < t.depth);
}

}  // namespace
}  // namespace mla
