#pragma once
// fp8 codes to bf16 values, for the files that do so: avx512_fp8_rows.cpp, and avx512_bf16_attend.cpp, which
// expands rows while it multiplies others. Compiled with -mavx512vbmi.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "mla/kernels/fp8_rows.h"

namespace mla {
namespace {

/// Upper and lower byte of each code's magnitude as bf16. Exponents are raised by 120, so that subtracting
/// from the upper byte can give any scale that is a power of four, and leave the 0 of code 0 what it is.
struct Fp8Table {
  alignas(64) std::uint8_t upper[128], lower[128];
  alignas(64) std::uint64_t order[8];  // what unpacking will put in order
};

constexpr int raised = 60;  // upper bytes count exponents by twos

constexpr Fp8Table make_fp8_table() {
  Fp8Table table{{}, {}, {0, 4, 1, 5, 2, 6, 3, 7}};
  for (int code = 1; code < 128; ++code) {
    int exponent = code >> 3, mantissa = code & 7;  // value 2^(exponent - 7) (1 + mantissa / 8)
    if (exponent == 0) {                            // mantissa * 2^-9
      exponent = 1;
      for (; mantissa < 8; mantissa <<= 1) --exponent;
      mantissa &= 7;
    }
    const int bits = (exponent + 120) << 7 | mantissa << 4;
    table.upper[code] = static_cast<std::uint8_t>((bits >> 8) + raised);
    table.lower[code] = static_cast<std::uint8_t>(bits & 0xff);
  }
  return table;
}

constexpr Fp8Table fp8_table = make_fp8_table();

/// What a block's codes share.
struct Fp8Scale {
  __m512i lowered;  // what is subtracted from upper bytes
  __m512i nan;      // the bits of a NaN if the scale is one, else 0

  __attribute__((always_inline)) explicit Fp8Scale(const std::byte* from) {
    std::uint32_t scale;
    std::memcpy(&scale, from, sizeof scale);
    // Of a power of four, 2^(2 j): 63 + j.
    lowered = _mm512_set1_epi8(static_cast<char>(raised + 63 - static_cast<int>(scale >> 24)));
    nan = _mm512_set1_epi16((scale & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : 0);
  }
};

/// 64 codes to 64 bf16 values.
__attribute__((always_inline)) inline void expand(const Fp8Table& t, const Fp8Scale& scale, __m512i codes,
                                                  __m512i& first, __m512i& second) {
  codes = _mm512_permutexvar_epi64(_mm512_load_si512(t.order), codes);
  const __m512i raised_upper =
      _mm512_permutex2var_epi8(_mm512_load_si512(t.upper), codes, _mm512_load_si512(t.upper + 64));
  const __m512i upper =  // magnitude | (codes & sign)
      _mm512_ternarylogic_epi32(_mm512_subs_epu8(raised_upper, scale.lowered), codes,
                                _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);
  const __m512i lower =
      _mm512_permutex2var_epi8(_mm512_load_si512(t.lower), codes, _mm512_load_si512(t.lower + 64));
  first = _mm512_or_si512(_mm512_unpacklo_epi8(lower, upper), scale.nan);
  second = _mm512_or_si512(_mm512_unpackhi_epi8(lower, upper), scale.nan);
}

/// fp8_block codes and the scale that they share.
__attribute__((always_inline)) inline void expand_whole_block(const Fp8Table& t, const std::byte* codes,
                                                              const std::byte* scale, bf16* out) {
  const Fp8Scale s(scale);
#pragma GCC unroll 2
  for (int i = 0; i < fp8_block; i += 64) {
    __m512i first, second;
    expand(t, s, _mm512_loadu_si512(codes + i), first, second);
    _mm512_storeu_si512(out + i, first);
    _mm512_storeu_si512(out + i + 32, second);
  }
}

/// Makes bf16 rows of fp8 ones in order, some of them between the products of those that are made.
class Expander {
 public:
  Expander() = default;
  /// out [rows][out_stride]
  Expander(const Fp8Rows* rows, bf16* out, std::int64_t out_stride)
      : from_(rows), out_(out), stride_(out_stride), left_(rows ? (rows->count + 3) / 4 * 4 : 0) {
    if (rows) blocks_ = rows->at.d_c / fp8_block;
  }

  /// Makes rows until `rows` are there, or all.
  void make_up_to(std::int64_t rows) {
    if (left_ == 0 || rows <= made_) return;
    const std::int64_t count = ((rows - made_ < left_ ? rows - made_ : left_) + 3) / 4 * 4;
    const Fp8Rows part{from_->at, from_->runs + made_ / 4, from_->row_stride, count};
    fp8_to_bf16_rows(part, out_ + made_ * stride_, stride_);
    made_ += count;
    left_ -= count;
  }

  /// How many times make() calls `between`; 0 if it can't make these rows, which then wait.
  std::int64_t calls_to_make(std::int64_t rows) const {
    if (left_ == 0 || from_->at.d_c % fp8_block != 0 || from_->at.d_r % 32 != 0) return 0;
    return (rows < left_ ? rows : left_) * blocks_;
  }

  /// The next rows, a multiple of four or all.
  template <class Between>
  __attribute__((always_inline)) void make(std::int64_t rows, const Between& between) {
    rows = rows < left_ ? rows : left_;
    const std::byte* const* runs = from_->runs + made_ / 4;
    const std::int64_t row_stride = from_->row_stride, scales = from_->at.scales, rope = from_->at.rope;
    bf16* out = out_ + made_ * stride_;
    made_ += rows;
    left_ -= rows;
    const std::byte* row = *runs;
    for (std::int64_t r = 1; r <= rows; ++r, out += stride_) {
      for (std::int64_t b = 0; b < blocks_; ++b) {
        const Fp8Table* table = &fp8_table;
        asm("" : "+r"(table));  // read here, not kept in registers that the products need
        expand_whole_block(*table, row + b * fp8_block, row + scales + b * 4, out + b * fp8_block);
        between();
      }
      for (std::int64_t i = 0; i < from_->at.d_r; i += 32)
        _mm512_storeu_si512(out + from_->at.d_c + i, _mm512_loadu_si512(row + rope + 2 * i));
      row = r % 4 == 0 && r < rows ? *++runs : row + row_stride;
    }
  }

 private:
  const Fp8Rows* from_ = nullptr;
  bf16* out_ = nullptr;
  std::int64_t stride_ = 0, blocks_ = 0, made_ = 0, left_ = 0;  // rows
};

}  // namespace
}  // namespace mla
