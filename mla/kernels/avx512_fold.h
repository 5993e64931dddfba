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

/// Which of features [d + 16 i, d + 16 i + 16) of d_v exist.
inline __mmask16 features_there(std::int64_t d, int i, std::int64_t d_v) {
  const std::int64_t left = d_v - d - 16 * i;
  return static_cast<__mmask16>(left >= 16 ? 0xFFFF : left <= 0 ? 0 : (1 << left) - 1);
}

/// Adds a query's d_v features to out. load(d, x) gives 16 N of them from d on, and anything behind the last.
template <int N, class Load>
void add_features(const FoldWeights& weights, std::int64_t d_v, float* out, const Load& load) {
  for (std::int64_t d = 0; d < d_v; d += 16 * N) {
    __m512 x[N];
    load(d, x);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const __mmask16 there = features_there(d, i, d_v);
      float* at = out + d + 16 * i;
      x[i] = _mm512_mul_ps(x[i], weights.added);
      if (!weights.is_first) x[i] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(there, at), weights.old, x[i]);
      _mm512_mask_storeu_ps(at, there, x[i]);
    }
  }
}

/// The same of two queries' features to nothing, the first as they are: what adding one after the other comes
/// to, with a third of the memory walked.
template <int N, class Load>
void add_two_features(const FoldWeights& weights, std::int64_t d_v, float* out, const Load& load_first,
                      const Load& load_second) {
  const __m512 old = weights.old, added = weights.added;
  for (std::int64_t d = 0; d < d_v; d += 16 * N) {
    __m512 x[N], y[N];
    load_first(d, x);
    load_second(d, y);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      _mm512_mask_storeu_ps(out + d + 16 * i, features_there(d, i, d_v),
                            _mm512_fmadd_ps(x[i], old, _mm512_mul_ps(y[i], added)));
    }
  }
}

/// Sums of a query over the rows of one state; `load` as add_features takes it.
template <class Load>
struct StateSums {
  float max, sum;
  Load load;
};

/// Adds a query's sums over one state or, if second is not null, two.
template <int N, class Load>
void fold_states(const StateSums<Load>& first, const StateSums<Load>* second, std::int64_t d_v,
                 const AttendSums& into) {
  if (second && *into.sum == 0.0f && first.sum != 0.0f && second->sum != 0.0f) {
    fold_weights(first.max, first.sum, into);
    add_two_features<N>(fold_weights(second->max, second->sum, into), d_v, into.acc, first.load,
                        second->load);
    return;
  }
  for (const StateSums<Load>* state : {&first, second}) {
    if (!state || state->sum == 0.0f) continue;  // this query sees none of the rows
    add_features<N>(fold_weights(state->max, state->sum, into), d_v, into.acc, state->load);
  }
}

/// AttendKernel::join.
void join(const AttendSums& from, std::int64_t d_v, const AttendSums& into) {
  const auto load = [&](std::int64_t d, __m512(&x)[2]) {
    for (int i = 0; i < 2; ++i)
      x[i] = _mm512_maskz_loadu_ps(features_there(d, i, d_v), from.acc + d + 16 * i);
  };
  fold_states<2, decltype(load)>({*from.max, *from.sum, load}, nullptr, d_v, into);
}

}  // namespace
}  // namespace mla
