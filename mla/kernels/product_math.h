#pragma once
// The products in f32 of the vector instruction sets (product.h), written once over their `Lanes` and to be
// included behind leaf_math.h, which defines F and W: everything here is in the anonymous namespace of the
// file that includes it.
#include <immintrin.h>

#include "mla/kernels/product_dot.h"
#include "mla/kernels/read64.h"

namespace mla {
namespace {

/// f32 tokens with weights of f32 (see product_dot.h).
struct F32Ops {
  using Weight = float;
  using Token = float;
  using F = Lanes::F;
  using X = Lanes::F;
  using Line = __m256;
  static constexpr std::int64_t width = W;
  static constexpr int run = W == 16 ? 8 : 4, pieces = 2;
  /// Of 12 tokens in L1 with 256 bits, of 24 in L2 with 512: there sums kept in memory cost more than that.
  static constexpr std::int64_t chunk = W == 16 ? 32768 : 1536;
  static F zero() { return Lanes::zero(); }
  static F load(const float* p) { return Lanes::load(p); }
  static void store(float* p, F value) { Lanes::store(p, value); }
  static F load_tokens(const float* p) { return Lanes::load(p); }
  static F repeat(const float* p) { return Lanes::repeat<2>(p); }
  static F fma(F w, F x, F sums) { return Lanes::fma(w, x, sums); }
  static F add(F a, F b) { return Lanes::add(a, b); }
  static F even(F a, F b) { return Lanes::even(a, b); }
  static F odd(F a, F b) { return Lanes::odd(a, b); }

  static __m256 line(const float* low, const float* high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
  }
  static void split(__m256 ac, __m256 bd, __m256* w) {
    w[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ac), _mm256_castps_pd(bd)));
    w[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ac), _mm256_castps_pd(bd)));
  }
  static __m256 repeat_token(const float* p) { return _mm256_castsi256_ps(_mm256_set1_epi64x(read64(p))); }
  static __m256 fma_line(__m256 w, __m256 x, __m256 sums) { return _mm256_fmadd_ps(w, x, sums); }
};

/// A lone f32 token with weights of bf16, widened in registers.
struct WidenedOps {
  using Weight = bf16;
  using Token = float;
  using Line = __m256;
  static constexpr int pieces = 4;
  static __m256i line(const bf16* low, const bf16* high) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
  }
  static void split(__m256i ac, __m256i bd, __m256* w) {
    const __m256i low = _mm256_unpacklo_epi32(ac, bd), high = _mm256_unpackhi_epi32(ac, bd);
    const __m256i zero = _mm256_setzero_si256();
    w[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, low));
    w[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, low));
    w[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, high));
    w[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, high));
  }
  static __m256 repeat_token(const float* p) { return F32Ops::repeat_token(p); }
  static __m256 fma_line(__m256 w, __m256 x, __m256 sums) { return F32Ops::fma_line(w, x, sums); }
};

// ---------------------------------------------------------------- sum: lanes are columns
//
// Tokens come in by 32-bit broadcasts.

constexpr std::int64_t sum_width = 2 * W;    // columns of one block
constexpr int sum_group = W == 16 ? 12 : 6;  // tokens of one block
constexpr std::int64_t sum_depth = 64;       // rows after which sums move on to other columns

/// Rows [begin, end) of columns [first, first + N W) and of T tokens from `token`; `part` is how many of the
/// last vector's columns there are. Sums that are not yet complete lie in y.
template <int T, int N, bool is_part, class V>
__attribute__((noinline)) void sum_block(const SumTile<V, float>& t, std::int64_t first, std::int64_t token,
                                         std::int64_t begin, std::int64_t end, std::int64_t part) {
  const auto load = [&](const auto* p, int j) __attribute__((always_inline)) {
    return is_part && j == N - 1 ? Lanes::load_part(p + j * W, part) : Lanes::load(p + j * W);
  };
  float* const y = t.y + token * t.y_stride + first;
  F acc[T][N];
#pragma GCC unroll 12
  for (int i = 0; i < T; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) acc[i][j] = begin == 0 ? Lanes::zero() : load(y + i * t.y_stride, j);
  }
  const float* tokens = t.tokens + token * t.token_stride;
  const V* row = t.weights + begin * t.weight_stride + first;
  for (std::int64_t d = begin; d < end; ++d, row += t.weight_stride) {
    F w[N];
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) w[j] = load(row, j);
#pragma GCC unroll 12
    for (int i = 0; i < T; ++i) {
      const F x = Lanes::set(tokens[i * t.token_stride + d]);
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) acc[i][j] = Lanes::fma(x, w[j], acc[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < T; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) {
      float* const to = y + i * t.y_stride + j * W;
      if (is_part && j == N - 1)
        Lanes::store_part(to, acc[i][j], part);
      else
        Lanes::store(to, acc[i][j]);
    }
  }
}

/// All columns of rows [begin, end) for T tokens.
template <int T, class V>
void sum_columns(const SumTile<V, float>& t, std::int64_t token, std::int64_t begin, std::int64_t end) {
  std::int64_t c = 0;
  for (; c + sum_width <= t.cols; c += sum_width) sum_block<T, 2, false>(t, c, token, begin, end, W);
  const std::int64_t rest = t.cols - c;
  if (rest > W)
    sum_block<T, 2, true>(t, c, token, begin, end, rest - W);
  else if (rest > 0)
    sum_block<T, 1, true>(t, c, token, begin, end, rest);
}

template <class V>
void sum(const SumTile<V, float>& t) {
  std::int64_t begin = 0;
  do {
    const std::int64_t end = t.depth - begin > sum_depth ? begin + sum_depth : t.depth;
    std::int64_t token = 0;
    for (; token + sum_group <= t.num_tokens; token += sum_group)
      sum_columns<sum_group>(t, token, begin, end);
    if constexpr (sum_group > 6) {
      for (; token + 6 <= t.num_tokens; token += 6) sum_columns<6>(t, token, begin, end);
    }
    for (; token + 3 <= t.num_tokens; token += 3) sum_columns<3>(t, token, begin, end);
    for (; token < t.num_tokens; ++token) sum_columns<1>(t, token, begin, end);
    begin = end;
  } while (begin < t.depth);
}

constexpr ProductKernels vector_products = {W / 2, dot<F32Ops>, dot_lone_token<WidenedOps>, sum<float>,
                                            sum<bf16>};

}  // namespace
}  // namespace mla
