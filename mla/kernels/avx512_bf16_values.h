#pragma once
// The sum of values of avx512_bf16_attend.cpp, which alone includes this: lanes are 32 features. Two rows at
// a time are interleaved in registers into pairs; weights come in by 32-bit broadcasts.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mla/kernels/avx512_bf16_pairs.h"

namespace mla {
namespace {

constexpr int most_values = 12;  // queries of one block
constexpr int wide_values =
    4;  // most queries of a block of two chunks of features: one would have too few sums

struct ValueBlock {
  const std::byte* const* runs;
  std::int64_t stride;  // bytes from row to row of a run
  std::int64_t num_runs;
  std::int64_t offset;           // bytes from a row's start to its values' first feature here
  const std::uint32_t* weights;  // [pairs][weight_stride]
  std::int64_t weight_stride;
  const float* shift;  // [Q] multiplies the sums so far, or null
  float* acc;          // [Q][32] the sums so far, the features in the order that unpacking left them in
  std::int64_t chunk_stride;  // floats from there to the sums of the next 32 features
  bool is_first;              // there are no sums so far
};

/// The sums of Q queries and C chunks of 32 features in registers.
template <int Q, int C>
struct ValueSums {
  __m512 low[C][Q], high[C][Q];

  /// Calls use(chunk, query) for all.
  template <class Use>
  __attribute__((always_inline)) static void for_all(const Use& use) {
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
#pragma GCC unroll 12
      for (int q = 0; q < Q; ++q) use(c, q);
    }
  }
  __attribute__((always_inline)) void clear() {
    for_all([&](int c, int q)
                __attribute__((always_inline)) { low[c][q] = high[c][q] = _mm512_setzero_ps(); });
  }
  __attribute__((always_inline)) void load(const float* acc, std::int64_t chunk_stride) {
    for_all([&](int c, int q) __attribute__((always_inline)) {
      low[c][q] = _mm512_load_ps(acc + c * chunk_stride + q * 32);
      high[c][q] = _mm512_load_ps(acc + c * chunk_stride + q * 32 + 16);
    });
  }
  __attribute__((always_inline)) void multiply(const float* by) {
    for_all([&](int c, int q) __attribute__((always_inline)) {
      low[c][q] = _mm512_mul_ps(low[c][q], _mm512_set1_ps(by[q]));
      high[c][q] = _mm512_mul_ps(high[c][q], _mm512_set1_ps(by[q]));
    });
  }
  /// Adds two rows' values times each query's two weights.
  __attribute__((always_inline)) void add(const std::byte* first, const std::byte* second,
                                          const std::byte* weights) {
    __m512bh l[C], h[C];
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      __m512i even = _mm512_loadu_si512(first + c * 64), odd = _mm512_loadu_si512(second + c * 64);
#ifdef __AVX512F__                      // not emulated
      asm("" : "+v"(even), "+v"(odd));  // gcc would load each twice
#endif
      l[c] = as_pairs(_mm512_unpacklo_epi16(even, odd));
      h[c] = as_pairs(_mm512_unpackhi_epi16(even, odd));
    }
#pragma GCC unroll 12
    for (int q = 0; q < Q; ++q) {
      int pair;
      std::memcpy(&pair, weights + q * 4, sizeof pair);
      const __m512bh p = as_pairs(_mm512_set1_epi32(pair));
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) {
        low[c][q] = _mm512_dpbf16_ps(low[c][q], l[c], p);
        high[c][q] = _mm512_dpbf16_ps(high[c][q], h[c], p);
      }
    }
  }
  __attribute__((always_inline)) void store(float* acc, std::int64_t chunk_stride) const {
    for_all([&](int c, int q) __attribute__((always_inline)) {
      _mm512_store_ps(acc + c * chunk_stride + q * 32, low[c][q]);
      _mm512_store_ps(acc + c * chunk_stride + q * 32 + 16, high[c][q]);
    });
  }
};

template <int Q, int C>
__attribute__((noinline)) void value_block(const ValueBlock& t, Fetch& to_fetch) {
  Fetch fetch = to_fetch;
  ValueSums<Q, C> sums;
  float* const acc = t.acc;
  const std::int64_t chunk_stride = t.chunk_stride;
  if (t.is_first) {
    sums.clear();
  } else {
    sums.load(acc, chunk_stride);
  }
  if (t.shift) sums.multiply(t.shift);
  const std::byte* const* runs = t.runs;
  const std::byte* weights = reinterpret_cast<const std::byte*>(t.weights);
  const std::int64_t offset = t.offset;
  std::int64_t stride = t.stride, stride3 = 3 * stride, weight_stride = t.weight_stride * 4;  // bytes
  fetch.along(
      t.num_runs, [&]() __attribute__((always_inline)) {
        asm(""
            : "+r"(stride), "+r"(stride3), "+r"(weight_stride));  // else gcc keeps an address for each load
        const std::byte* run = *runs++ + offset;
        sums.add(run, run + stride, weights);
        sums.add(run + 2 * stride, run + stride3, weights + weight_stride);
        weights += 2 * weight_stride;
      });
  to_fetch = fetch;
  sums.store(acc, chunk_stride);
}

template <int Q, int C>
void value_block_of(const ValueBlock& t, std::int64_t queries, Fetch& fetch) {
  if constexpr (Q > 1) {
    if (queries < Q) return value_block_of<Q - 1, C>(t, queries, fetch);
  }
  value_block<Q, C>(t, fetch);
}

/// Adds the values of all rows for 1 to most_values queries, or wide_values if two chunks are wanted.
void add_values(const ValueBlock& t, std::int64_t queries, int chunks, Fetch& fetch) {
  chunks == 2 ? value_block_of<wide_values, 2>(t, queries, fetch)
              : value_block_of<most_values, 1>(t, queries, fetch);
}

/// 32 features from the order that unpacking leaves, 8 g .. 8 g + 3 in 128-bit lane g of low and the next
/// four in that of high, into their own.
void to_order(__m512& low, __m512& high) {
  const __m512d l = _mm512_castps_pd(low), h = _mm512_castps_pd(high);
  low = _mm512_castpd_ps(_mm512_permutex2var_pd(l, _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), h));
  high = _mm512_castpd_ps(_mm512_permutex2var_pd(l, _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4), h));
}

}  // namespace
}  // namespace mla
