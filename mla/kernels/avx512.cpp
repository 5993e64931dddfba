// Sixteen floats side by side: AVX-512 F, BW, DQ and VL.
#include <immintrin.h>

#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/exp_math.h"
#include "mla/kernels/read64.h"

namespace mla {
namespace {

struct Lanes {
  using F = __m512;
  static constexpr int width = 16;
  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static F load_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_f8(const std::uint8_t* p) {
    const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return mul(_mm512_cvtph_ps(f8_to_f16(codes)), set(256.0f));
  }
  static F load_part(const float* p, std::int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static F load_part(const bf16* p, std::int64_t n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
  static void store(float* p, F value) { _mm512_storeu_ps(p, value); }
  static void store(bf16* p, F value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(value)); }
  static void store_part(float* p, F value, std::int64_t n) { _mm512_mask_storeu_ps(p, first(n), value); }
  static void store_part(bf16* p, F value, std::int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow(value));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  static F exp(F x) { return polynomial_exp<Lanes>(x); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  /// x * 2^k for whole k.
  static F times_power_of_two(F x, F k) { return _mm512_scalef_ps(x, k); }
  /// 0 where x < low, inf where x > high, else value.
  static F where_in_range(F x, float low, float high, F value) {
    value = _mm512_mask_mov_ps(value, _mm512_cmp_ps_mask(x, set(high), _CMP_GT_OQ), set(__builtin_inff()));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set(low), _CMP_NLT_UQ), value);
  }

  template <int P>
  static F repeat(const float* p) {
    if constexpr (P == 2) return _mm512_castsi512_ps(_mm512_set1_epi64(read64(p)));
    if constexpr (P == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
    if constexpr (P == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
    if constexpr (P == 16) return load(p);
  }
  static F even(F a, F b) { return _mm512_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0)); }
  static F odd(F a, F b) { return _mm512_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)); }
  static F swap_neighbours(F x) { return _mm512_permute_ps(x, _MM_SHUFFLE(2, 3, 0, 1)); }
  static F swap_pairs(F x) { return _mm512_permute_ps(x, _MM_SHUFFLE(1, 0, 3, 2)); }
  /// Each quad becomes the sum of the P / 4 neighbours that it is one of.
  template <int P>
  static F add_quads(F x) {
    if constexpr (P >= 8) x = add(x, _mm512_shuffle_f32x4(x, x, _MM_SHUFFLE(2, 3, 0, 1)));
    if constexpr (P >= 16) x = add(x, _mm512_shuffle_f32x4(x, x, _MM_SHUFFLE(1, 0, 3, 2)));
    return x;
  }
  /// b where a or b is NaN.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  /// a < b ? x : y, lane by lane.
  static F where_less(F a, F b, F x, F y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }

  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(F x) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }

 private:
  static __mmask16 first(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
  /// f16 values that 256 times are those of e4m3 codes, subnormals too: their exponents differ by 8 in where
  /// they begin.
  static __m256i f8_to_f16(__m256i codes) {
    const __m256i none = _mm256_set1_epi16(0x3f80);  // the code that is no number
    const __m256i half =
        _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(static_cast<short>(0xbf80)));
    const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(half, none), none);
    return _mm256_or_si256(half, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7e00)));
  }
  static F widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static __m256i narrow(F value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i result = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(result, 16));
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

const LeafKernels avx512_kernels = make_kernels(Isa::avx512);
const LeafKernels avx512_bf16_kernels = make_kernels(Isa::avx512_bf16);
const ProductKernels avx512_products = vector_products;
const PanelKernels avx512_panels = vector_panels;
const AttendKernel avx512_f32_attend = vector_f32_attend;
const GradientKernels avx512_gradients = {forward_tile, gradient_tile, transpose};

}  // namespace mla
