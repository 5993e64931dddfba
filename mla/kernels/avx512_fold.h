#pragma once
// How the AVX-512 kernels of bf16 and int8 rows, which alone include this, add a query's sums to others
// (AttendKernel::fold and join): the same arithmetic whatever memory the sums come from.
#include <immintrin.h>

#include <cstdint>

#include "mla/kernels/attend.h"

namespace mla {
namespace {

/// 2^x for x < 128 to a relative error of 1e-7: x = k + f, f in [0, 1), a polynomial of degree 5 in f.
__m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x01);
  __m512 p = _mm512_set1_ps(1.8671317e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.0170269e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5799916e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4016445e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9315131e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

/// 2^x of one number.
float exp2_of(float x) {
  return _mm512_cvtss_f32(exp2(_mm512_set1_ps(x)));
}

/// By what a query's sums and those that come to them are multiplied.
struct FoldWeights {
  bool is_first;  // nothing was there
  __m512 old, added;
};

/// The weights for sums with `max` and `sum`, which is not 0; adds these two.
FoldWeights fold_weights(float max, float sum, const AttendSums& into) {
  const bool is_first = *into.sum == 0.0f;
  const float top = !is_first && *into.max > max ? *into.max : max;
  const float old = is_first ? 0.0f : exp2_of(*into.max - top), added = exp2_of(max - top);
  *into.max = top;
  *into.sum = (is_first ? 0.0f : *into.sum * old) + sum * added;
  return {is_first, _mm512_set1_ps(old), _mm512_set1_ps(added)};
}

/// Adds 32 features, or those that are there, to out.
template <bool is_first>
__attribute__((always_inline)) inline void fold_features(const FoldWeights& weights, __mmask32 there,
                                                         __m512 low, __m512 high, float* out) {
  const auto low_there = static_cast<__mmask16>(there), high_there = static_cast<__mmask16>(there >> 16);
  low = _mm512_mul_ps(low, weights.added);
  high = _mm512_mul_ps(high, weights.added);
  if constexpr (!is_first) {
    low = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(low_there, out), weights.old, low);
    high = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(high_there, out + 16), weights.old, high);
  }
  _mm512_mask_storeu_ps(out, low_there, low);
  _mm512_mask_storeu_ps(out + 16, high_there, high);
}

/// Adds d_v features to out; load(d, low, high) gives those from d on, zeros behind the last.
template <bool is_first, class Load>
__attribute__((always_inline)) inline void fold_features_of(const FoldWeights& weights, std::int64_t d_v,
                                                            float* out, const Load& load) {
  __m512 low, high;
  std::int64_t d = 0;
  for (; d + 32 <= d_v; d += 32) {
    load(d, low, high);
    fold_features<is_first>(weights, ~__mmask32{0}, low, high, out + d);
  }
  if (d == d_v) return;
  load(d, low, high);
  fold_features<is_first>(weights, (__mmask32{1} << (d_v - d)) - 1, low, high, out + d);
}

template <class Load>
void fold_all(const FoldWeights& weights, std::int64_t d_v, float* out, const Load& load) {
  if (weights.is_first) {
    fold_features_of<true>(weights, d_v, out, load);
  } else {
    fold_features_of<false>(weights, d_v, out, load);
  }
}

/// AttendKernel::join.
void join(const AttendSums& from, std::int64_t d_v, const AttendSums& into) {
  if (*from.sum == 0.0f) return;  // this query sees none of the rows
  const float* acc = from.acc;
  fold_all(
      fold_weights(*from.max, *from.sum, into), d_v,
      into.acc, [&](std::int64_t d, __m512 & low, __m512 & high) __attribute__((always_inline)) {
        const std::int64_t left = d_v - d;
        const __mmask32 there = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
        low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there), acc + d);
        high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(there >> 16), acc + d + 16);
      });
}

}  // namespace
}  // namespace mla
