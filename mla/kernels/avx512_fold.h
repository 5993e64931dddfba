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

/// Adds 16 features, or those that are there, to out.
void fold_features(const FoldWeights& weights, __mmask16 there, __m512 features, float* out) {
  features = _mm512_mul_ps(features, weights.added);
  if (!weights.is_first) features = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, out), weights.old, features);
  _mm512_mask_storeu_ps(out, there, features);
}

/// AttendKernel::join.
void join(const AttendSums& from, std::int64_t d_v, const AttendSums& into) {
  if (*from.sum == 0.0f) return;  // this query sees none of the rows
  const FoldWeights weights = fold_weights(*from.max, *from.sum, into);
  for (std::int64_t d = 0; d < d_v; d += 16) {
    const auto there = static_cast<__mmask16>(d_v - d >= 16 ? 0xFFFF : (1 << (d_v - d)) - 1);
    fold_features(weights, there, _mm512_maskz_loadu_ps(there, from.acc + d), into.acc + d);
  }
}

}  // namespace
}  // namespace mla
