// Eight floats side by side: AVX2 and FMA.
#include <immintrin.h>

#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/exp_math.h"
#include "mla/kernels/read64.h"

namespace mla {
namespace {

struct Lanes {
  using F = __m256;
  static constexpr int width = 8;
  static F zero() { return _mm256_setzero_ps(); }
  static F set(float value) { return _mm256_set1_ps(value); }

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load_f16(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static F load_f8(const std::uint8_t* p) {
    const __m128i codes = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return mul(_mm256_cvtph_ps(f8_to_f16(codes)), set(256.0f));
  }
  static F load_part(const float* p, std::int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static F load_part(const bf16* p, std::int64_t n) {
    alignas(16) std::uint16_t bits[8] = {};
    for (std::int64_t i = 0; i < n; ++i) bits[i] = p[i].bits;
    return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(bits)));
  }
  static void store(float* p, F value) { _mm256_storeu_ps(p, value); }
  static void store(bf16* p, F value) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(value)); }
  static void store_part(float* p, F value, std::int64_t n) { _mm256_maskstore_ps(p, first(n), value); }
  static void store_part(bf16* p, F value, std::int64_t n) {
    alignas(16) std::uint16_t bits[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(bits), narrow(value));
    for (std::int64_t i = 0; i < n; ++i) p[i].bits = bits[i];
  }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  static F exp(F x) { return polynomial_exp<Lanes>(x); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  /// x * 2^k for whole k, as 2^(k/2) * 2^(k - k/2), so that k = 128 does not overflow the exponent field.
  static F times_power_of_two(F x, F k) {
    const __m256i whole = _mm256_cvtps_epi32(k);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    return mul(mul(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
  }
  /// 0 where x < low, inf where x > high, else value.
  static F where_in_range(F x, float low, float high, F value) {
    value = _mm256_blendv_ps(value, set(__builtin_inff()), _mm256_cmp_ps(x, set(high), _CMP_GT_OQ));
    return _mm256_andnot_ps(_mm256_cmp_ps(x, set(low), _CMP_LT_OQ), value);
  }

  template <int P>
  static F repeat(const float* p) {
    if constexpr (P == 1) return _mm256_broadcast_ss(p);
    if constexpr (P == 2) return _mm256_castsi256_ps(_mm256_set1_epi64x(read64(p)));
    if constexpr (P == 4) return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
    if constexpr (P == 8) return load(p);
  }
  static F even(F a, F b) { return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)); }
  static F odd(F a, F b) { return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)); }
  static F swap_neighbours(F x) { return _mm256_permute_ps(x, _MM_SHUFFLE(2, 3, 0, 1)); }
  static F swap_pairs(F x) { return _mm256_permute_ps(x, _MM_SHUFFLE(1, 0, 3, 2)); }
  /// Each quad becomes the sum of the P / 4 neighbours that it is one of.
  template <int P>
  static F add_quads(F x) {
    return P >= 8 ? add(x, _mm256_permute2f128_ps(x, x, 1)) : x;
  }
  /// b where a or b is NaN.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  /// a < b ? x : y, lane by lane.
  static F where_less(F a, F b, F x, F y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }

  static float reduce_max(F x) {
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
  }
  static float reduce_add(F x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

 private:
  static __m256i first(std::int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F power_of_two(__m256i k) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
  }
  /// f16 values that 256 times are those of e4m3 codes, subnormals too: their exponents differ by 8 in where
  /// they begin.
  static __m128i f8_to_f16(__m128i codes) {
    const __m128i none = _mm_set1_epi16(0x3f80);  // the code that is no number
    const __m128i half = _mm_and_si128(_mm_slli_epi16(codes, 7), _mm_set1_epi16(static_cast<short>(0xbf80)));
    const __m128i is_nan = _mm_cmpeq_epi16(_mm_and_si128(half, none), none);
    return _mm_or_si128(half, _mm_and_si128(is_nan, _mm_set1_epi16(0x7e00)));
  }
  static F widen(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static __m128i narrow(F value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
  }
};

}  // namespace
}  // namespace mla

#include "mla/kernels/leaf_math.h"
#include "mla/kernels/panel_f32.h"
#include "mla/kernels/product_math.h"

#include "mla/kernels/attend_math.h"
#include "mla/kernels/gradient_math.h"
#include "mla/kernels/gradient_transpose.h"

namespace mla {

const LeafKernels avx2_kernels = make_kernels(Isa::avx2);
const ProductKernels avx2_products = vector_products;
const PanelKernels avx2_panels = vector_panels;
const AttendKernel avx2_f32_attend = vector_f32_attend;
const GradientKernels avx2_gradients = {forward_tile, gradient_tile, transpose};

}  // namespace mla
