// fp8 latent rows as bf16 rows: AVX-512 with VBMI. Compiled with -mavx512vbmi; see fp8_rows.h.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/avx512_fp8_expand.h"
#include "mla/kernels/fp8_rows.h"

namespace mla {
namespace {

/// Up to 128 codes that share a scale.
void expand_block(const std::byte* codes, const std::byte* scale, std::int64_t count, bf16* out) {
  const Fp8Scale s(scale);
  for (std::int64_t i = 0; i < count; i += 64) {
    const std::int64_t left = count - i;
    const __mmask64 there = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    __m512i first, second;
    expand(fp8_table, s, _mm512_maskz_loadu_epi8(there, codes + i), first, second);
    _mm512_mask_storeu_epi16(out + i, static_cast<__mmask32>(there), first);
    _mm512_mask_storeu_epi16(out + i + 32, static_cast<__mmask32>(there >> 32), second);
  }
}

void copy(const std::byte* from, std::int64_t count, bf16* out) {
  for (std::int64_t i = 0; i < count; i += 32) {
    const std::int64_t left = count - i;
    const __mmask32 there = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    _mm512_mask_storeu_epi16(out + i, there, _mm512_maskz_loadu_epi16(there, from + 2 * i));
  }
}

constexpr std::int64_t runs_ahead = 4;

void fetch(const std::byte* from, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T0);
}

void expand_row(const LatentRow& at, const std::byte* row, bf16* out) {
  const std::byte* scales = row + at.scales;
  for (std::int64_t i = 0; i < at.d_c; i += fp8_block, scales += sizeof(float)) {
    if (at.d_c - i >= fp8_block) {
      expand_whole_block(fp8_table, row + i, scales, out + i);
    } else {
      expand_block(row + i, scales, at.d_c - i, out + i);
    }
  }
  copy(row + at.rope, at.d_r, out + at.d_c);
}

}  // namespace

void fp8_to_bf16_rows(const Fp8Rows& rows, bf16* out, std::int64_t out_stride) {
  const std::int64_t num_runs = (rows.count + 3) / 4;
  for (std::int64_t i = 0; i < num_runs; ++i) {
    if (i + runs_ahead < num_runs) fetch(rows.runs[i + runs_ahead], 4 * rows.row_stride);
    const std::byte* row = rows.runs[i];
    const std::int64_t left = rows.count - 4 * i;
    for (std::int64_t r = 0; r < (left < 4 ? left : 4); ++r, row += rows.row_stride, out += out_stride)
      expand_row(rows.at, row, out);
  }
}

}  // namespace mla
