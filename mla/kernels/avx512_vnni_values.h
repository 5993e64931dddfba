#pragma once
// The sum of values of avx512_vnni_attend.cpp, which alone includes this: lanes are 32 features.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mla/kernels/avx512_bf16_pairs.h"
#include "mla/kernels/avx512_vnni_scores.h"

namespace mla {
namespace {

constexpr std::int64_t chunk = 64;  // features, half of them of one value block

constexpr std::int64_t half_chunks(std::int64_t features) {
  return (features + chunk - 1) / chunk * 2;
}

/// Queries of a group: their weights, [rows / 8][weight_stride], of each even and odd rows; by what their
/// sums so far and the integer sums are multiplied; and those sums, [query][32].
struct ValueQueries {
  const std::uint32_t* weights;
  std::int64_t weight_stride;
  const float *old, *added;
  float* acc;
};

struct ValueBlock {
  ValueQueries queries, more;    // Q of one group, R of another
  const std::byte* const* runs;  // [rows / 4]
  std::int64_t row_stride;
  int rows;             // a multiple of 8
  std::int64_t offset;  // bytes from a row's start to the chunk's first code
  __mmask64 features;   // of the chunk, those that exist
  int half;
  Fetch* fetch;      // a step for each eight rows, or null
  std::byte* quads;  // [rows / 4][128] quadruples of rows
  bool keeps_quads;  // this block makes them for others
  bool has_quads;    // another has made them
  bool is_first;     // there are no sums so far
  bool moves;        // `old` may be other than 1
};

/// Sums of products with quadruples of rows, for 32 features.
template <int N>
struct Sums {
  __m512i low[N], high[N];
};

template <int Q, int R>
__attribute__((always_inline)) inline void add_quad(Sums<Q + R>& sums, __m512i l, __m512i h,
                                                    const std::uint32_t* weights, const std::uint32_t* more) {
#pragma GCC unroll 12
  for (int q = 0; q < Q + R; ++q) {
    const std::uint32_t rows = q < Q ? weights[2 * q] : more[2 * (q - Q)];
    const __m512i p = _mm512_set1_epi32(static_cast<int>(rows));
    sums.low[q] = add_products_of_bytes(sums.low[q], p, l);
    sums.high[q] = add_products_of_bytes(sums.high[q], p, h);
  }
}

template <int N>
__attribute__((always_inline)) inline void clear(Sums<N>& sums) {
#pragma GCC unroll 12
  for (int q = 0; q < N; ++q) sums.low[q] = sums.high[q] = _mm512_setzero_si512();
}

enum class SumsSoFar { none, stay, move };

template <int Q, int R, SumsSoFar so_far>
__attribute__((always_inline)) inline void add_to_acc(const ValueBlock& t, const Sums<Q + R>& sums) {
  const ValueQueries of[2] = {t.queries, t.more};
#pragma GCC unroll 12
  for (int q = 0; q < Q + R; ++q) {
    const int group = q < Q ? 0 : 1, i = q < Q ? q : q - Q;
    const __m512 added = _mm512_set1_ps(of[group].added[i]);
    const __m512 integers[2] = {_mm512_cvtepi32_ps(sums.low[q]), _mm512_cvtepi32_ps(sums.high[q])};
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      float* acc = of[group].acc + i * 32 + part * 16;
      if constexpr (so_far == SumsSoFar::none) {
        _mm512_store_ps(acc, _mm512_mul_ps(integers[part], added));
      } else {
        __m512 before = _mm512_load_ps(acc);
        if constexpr (so_far == SumsSoFar::move)
          before = _mm512_mul_ps(before, _mm512_set1_ps(of[group].old[i]));
        _mm512_store_ps(acc, _mm512_fmadd_ps(integers[part], added, before));
      }
    }
  }
}

/// Brings integer sums to those so far. These have the same bits whether they are multiplied by 1 or not at
/// all, so a query's don't depend on its company.
template <int Q, int R>
__attribute__((always_inline)) inline void add_to_acc(const ValueBlock& t, const Sums<Q + R>& sums) {
  if (t.is_first) return add_to_acc<Q, R, SumsSoFar::none>(t, sums);
  if (t.moves) return add_to_acc<Q, R, SumsSoFar::move>(t, sums);
  add_to_acc<Q, R, SumsSoFar::stay>(t, sums);
}

/// Features with i % 16 below 8 (half 0) or not (half 1) of a chunk. Four rows of equal parity are
/// interleaved in registers into quadruples. Sums stay in the order that this leaves.
template <int Q, int R, int half, bool whole, bool keeps, bool fetches>
__attribute__((noinline)) void value_block(const ValueBlock& t) {
  Sums<Q + R> sums;
  clear(sums);
  const __mmask64 features = t.features;
  const auto load = [features](const std::byte* from) __attribute__((always_inline)) {
    return whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(features, from);
  };
  const std::uint32_t* weights = t.queries.weights;
  const std::uint32_t* more = R > 0 ? t.more.weights : weights;  // never read without more queries
  const std::int64_t stride = t.row_stride, stride2 = 2 * stride, offset = t.offset;
  const std::int64_t weight_stride = t.queries.weight_stride, more_stride = t.more.weight_stride;
  const std::byte* const* runs = t.runs;
  std::byte* quads = t.quads;
  const auto add_rows = [&]() __attribute__((always_inline)) {
    const std::byte* near = runs[0] + offset;
    const std::byte* far = runs[1] + offset;
#pragma GCC unroll 2
    for (int parity = 0; parity < 2; ++parity, near += stride, far += stride, quads += 128) {
      const __m512i a = load(near), b = load(near + stride2), c = load(far), d = load(far + stride2);
      const __m512i x = half ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
      const __m512i y = half ? _mm512_unpackhi_epi8(c, d) : _mm512_unpacklo_epi8(c, d);
      const __m512i l = _mm512_unpacklo_epi16(x, y), h = _mm512_unpackhi_epi16(x, y);
      if constexpr (keeps) {
        _mm512_store_si512(quads, l);
        _mm512_store_si512(quads + 64, h);
      }
      add_quad<Q, R>(sums, l, h, weights + parity, more + parity);
    }
    runs += 2;
    weights += weight_stride;
    more += R > 0 ? more_stride : 0;
  };
  const std::byte* const* const end = runs + t.rows / 4;
  if constexpr (fetches) {
    Fetch fetch = *t.fetch;
    fetch.along(t.rows / 8, add_rows);
    *t.fetch = fetch;
  } else {
    while (runs != end) add_rows();
  }
  add_to_acc<Q, R>(t, sums);
}

/// The same from quadruples that a block before it kept.
template <int Q, int R>
__attribute__((noinline)) void value_block_of_quads(const ValueBlock& t) {
  Sums<Q + R> sums;
  clear(sums);
  const std::uint32_t* weights = t.queries.weights;
  const std::uint32_t* more = R > 0 ? t.more.weights : weights;  // never read without more queries
  const std::int64_t weight_stride = t.queries.weight_stride, more_stride = t.more.weight_stride;
  const std::byte* quads = t.quads;
  for (const std::byte* const end = quads + t.rows / 4 * 128; quads != end;
       quads += 256, weights += weight_stride, more += R > 0 ? more_stride : 0) {
#pragma GCC unroll 2
    for (int parity = 0; parity < 2; ++parity) {
      add_quad<Q, R>(sums, _mm512_load_si512(quads + parity * 128),
                     _mm512_load_si512(quads + parity * 128 + 64), weights + parity, more + parity);
    }
  }
  add_to_acc<Q, R>(t, sums);
}

template <int Q, int R, bool keeps, bool fetches>
void whole_value_block(const ValueBlock& t) {
  return t.half == 0 ? value_block<Q, R, 0, true, keeps, fetches>(t)
                     : value_block<Q, R, 1, true, keeps, fetches>(t);
}

template <int Q, int R>
void value_block(const ValueBlock& t) {
  if (t.has_quads) return value_block_of_quads<Q, R>(t);
  if (t.features != ~__mmask64{0})
    return t.half == 0 ? value_block<Q, R, 0, false, true, false>(t)
                       : value_block<Q, R, 1, false, true, false>(t);
  if (t.fetch)
    return (t.keeps_quads ? whole_value_block<Q, R, true, true> : whole_value_block<Q, R, false, true>)(t);
  return (t.keeps_quads ? whole_value_block<Q, R, true, false> : whole_value_block<Q, R, false, false>)(t);
}

using ValueKernel = void (*)(const ValueBlock&);
constexpr ValueKernel value_blocks[8] = {value_block<1, 0>, value_block<2, 0>, value_block<3, 0>,
                                         value_block<4, 0>, value_block<5, 0>, value_block<6, 0>,
                                         value_block<7, 0>, value_block<8, 0>};

/// Eight queries of one group and one to four of another.
constexpr ValueKernel joined_value_blocks[4] = {value_block<8, 1>, value_block<8, 2>, value_block<8, 3>,
                                                value_block<8, 4>};

/// The features of a query's sums, [half chunk][half_stride] of which 32 are its own: a value block leaves
/// four neighbours in each 128 bits.
struct LoadFeatures {
  const float* acc;
  std::int64_t half_stride;

  __attribute__((always_inline)) void operator()(std::int64_t d, __m512 (&x)[4]) const {
    const float *lower = acc + d / chunk * 2 * half_stride, *upper = lower + half_stride;
    const __m512 a = _mm512_load_ps(lower), b = _mm512_load_ps(lower + 16), c = _mm512_load_ps(upper),
                 e = _mm512_load_ps(upper + 16);
    const __m512 ab0 = _mm512_shuffle_f32x4(a, b, 0x44), ab1 = _mm512_shuffle_f32x4(a, b, 0xEE);
    const __m512 ce0 = _mm512_shuffle_f32x4(c, e, 0x44), ce1 = _mm512_shuffle_f32x4(c, e, 0xEE);
    x[0] = _mm512_shuffle_f32x4(ab0, ce0, 0x88);
    x[1] = _mm512_shuffle_f32x4(ab0, ce0, 0xDD);
    x[2] = _mm512_shuffle_f32x4(ab1, ce1, 0x88);
    x[3] = _mm512_shuffle_f32x4(ab1, ce1, 0xDD);
  }
};

}  // namespace
}  // namespace mla
