// Packing for the prefill kernel, and keys and values from latents: AVX-512 with BF16. Compiled with
// -mavx512bf16; see prefill.h.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/avx512_pairs.h"
#include "mla/kernels/prefill.h"

namespace mla {
namespace {

/// The first `n` of 16 or 32 lanes, none for a negative n.
__mmask16 first16(std::int64_t n) {
  return n >= 16  ? static_cast<__mmask16>(0xffff)
         : n <= 0 ? __mmask16{0}
                  : static_cast<__mmask16>((1u << n) - 1u);
}
__mmask32 first32(std::int64_t n) {
  return n >= 32 ? ~__mmask32{0} : n <= 0 ? __mmask32{0} : (__mmask32{1} << n) - 1u;
}

// ---------------------------------------------------------------- packing: 16 x 16 pairs are transposed

/// Lane c of rows[r] becomes lane r of rows[c].
__attribute__((always_inline)) inline void transpose(__m512i (&rows)[16]) {
  __m512i pairs[16], fours[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // fours[i + c]: lanes c, c + 4, ... of rows i to i + 3
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low_even = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xdd);
    const __m512i high_even = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_i32x4(low_even, high_even, 0x88);
    rows[c + 4] = _mm512_shuffle_i32x4(low_odd, high_odd, 0x88);
    rows[c + 8] = _mm512_shuffle_i32x4(low_even, high_even, 0xdd);
    rows[c + 12] = _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd);
  }
}

/// packed[pair of values][32]: dword r is row r's pair, zeros behind the last of `count` rows.
/// `load(row, d, left)` gives values [d, d + 32) of a row, zeros for all but `left` of them.
template <class Load>
void pack_rows(std::int64_t count, std::int64_t depth, bf16* packed, const Load& load) {
  const std::int64_t pairs = (depth + 1) / 2;
  for (std::int64_t half = 0; half < 32; half += 16) {
    for (std::int64_t pair = 0; pair < pairs; pair += 16) {
      const std::int64_t left = depth - 2 * pair;
      __m512i rows[16];
      if (half + 16 <= count) {
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r) rows[r] = load(half + r, 2 * pair, left);
      } else {
        for (int r = 0; r < 16; ++r)
          rows[r] = half + r < count ? load(half + r, 2 * pair, left) : _mm512_setzero_si512();
      }
      transpose(rows);
      bf16* out = packed + pair * 64 + half * 2;
      if (pair + 16 <= pairs) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(out + i * 64, rows[i]);
      } else {
        for (int i = 0; pair + i < pairs; ++i) _mm512_storeu_si512(out + i * 64, rows[i]);
      }
    }
  }
}

// ---------------------------------------------------------------- products with latents: lanes are 32
// features
//
// 4 R rows by 32 features: up to 24 accumulators, 14 loads for 24 products. A row's pairs come in by 32-bit
// broadcasts from where it lies.

struct Latents {
  const bf16* weights;  // packed
  std::int64_t d_c;
  const std::byte* const* runs;
  std::int64_t stride;
  const std::byte* ahead[2];  // rows to fetch
};

template <int R>
__attribute__((always_inline)) inline void multiply(const Latents& l, __m512 (&acc)[4 * R][2]) {
#pragma GCC unroll 12
  for (int i = 0; i < 4 * R; ++i) acc[i][0] = acc[i][1] = _mm512_setzero_ps();
  const std::byte* run[R];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) run[r] = l.runs[r];
  std::int64_t stride = l.stride, stride3 = 3 * l.stride;
  const bf16* weights = l.weights;
  const auto add = [&](const auto& pair_at) __attribute__((always_inline)) {
    const __m512bh low = as_pairs(_mm512_loadu_si512(weights)),
                   high = as_pairs(_mm512_loadu_si512(weights + 32));
    weights += 64;
    asm volatile("" : "+r"(stride), "+r"(stride3));  // or there would be twelve pointers
#pragma GCC unroll 12
    for (int i = 0; i < 4 * R; ++i) {
      const std::byte* row = run[i / 4] + (i % 4 == 3 ? stride3 : i % 4 * stride);
      const __m512bh pair = as_pairs(_mm512_set1_epi32(pair_at(row)));
      acc[i][0] = _mm512_dpbf16_ps(acc[i][0], low, pair);
      acc[i][1] = _mm512_dpbf16_ps(acc[i][1], high, pair);
    }
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) run[r] += 2 * sizeof(bf16);
  };
  constexpr std::int64_t line = 32;  // values
  for (std::int64_t d = 0; d + 2 <= l.d_c;) {
    _mm_prefetch(reinterpret_cast<const char*>(l.ahead[0] + 2 * d), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(l.ahead[1] + 2 * d), _MM_HINT_T1);
    for (const std::int64_t end = d + line < l.d_c ? d + line : l.d_c; d + 2 <= end; d += 2) {
      add([](const std::byte* row) {
        std::int32_t pair;
        std::memcpy(&pair, row, sizeof pair);
        return pair;
      });
    }
  }
  if (l.d_c % 2 != 0) {  // what lies behind the last value may be anything
    add([](const std::byte* row) {
      std::uint16_t last;
      std::memcpy(&last, row, sizeof last);
      return static_cast<std::int32_t>(last);
    });
  }
}

/// Keys of 4 R rows, `stride` values apart.
template <int R>
__attribute__((noinline)) void key_block(const Latents& l, bf16* out, std::int64_t stride,
                                         __mmask32 features) {
  __m512 acc[4 * R][2];
  multiply<R>(l, acc);
#pragma GCC unroll 12
  for (int i = 0; i < 4 * R; ++i) {
    const auto row = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(acc[i][1], acc[i][0]));
    _mm512_mask_storeu_epi16(out + i * stride, features, row);
  }
}

/// Words w and 16 + w beside each other.
__m512i zip_halves() {
  alignas(64) static const std::uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_load_si512(order);
}

/// Values of 4 R rows, in pairs of rows.
template <int R>
__attribute__((noinline)) void value_block(const Latents& l, bf16* out) {
  __m512 acc[4 * R][2];
  multiply<R>(l, acc);
  const __m512i zip = zip_halves();
#pragma GCC unroll 6
  for (int p = 0; p < 2 * R; ++p) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto rows =
          reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(acc[2 * p + 1][half], acc[2 * p][half]));
      _mm512_storeu_si512(out + p * 64 + half * 32, _mm512_permutexvar_epi16(zip, rows));
    }
  }
}

const std::byte* row_at(const PrefillRows& rows, std::int64_t i) {
  return rows.runs[i / 4] + i % 4 * rows.row_stride;
}

/// A block of 4 R rows, chunk by chunk: the rows stay in L1. Meanwhile the next block's are fetched, two rows
/// at a time.
template <int R>
void decompress_rows(const PrefillRows& rows, std::int64_t first, const PrefillWeights& w,
                     const PrefillTile& tile) {
  const std::int64_t stride = PrefillTile::key_stride(tile.d_qk), of_keys = prefill_chunks(w.d_n);
  Latents l{w.packed, w.d_c, rows.runs + first / 4, rows.row_stride, {}};
  for (std::int64_t chunk = 0; chunk < w.chunks();
       ++chunk, l.weights += PrefillWeights::chunk_values(w.d_c)) {
    for (std::int64_t i = 0; i < 2; ++i) {
      const std::int64_t row = first + prefill_block + (2 * chunk + i) % prefill_block;
      l.ahead[i] = row_at(rows, row < rows.count ? row : first);
    }
    if (chunk < of_keys) {
      const std::int64_t feature = chunk * prefill_chunk;
      key_block<R>(l, tile.keys + first * stride + feature, stride, first32(w.d_n - feature));
    } else {
      const std::int64_t before = (chunk - of_keys) * prefill_tile + first;
      value_block<R>(l, tile.values + before * prefill_chunk);
    }
  }
}

/// Runs of the block at row `first`.
std::int64_t runs_of(const PrefillRows& rows, std::int64_t first) {
  const std::int64_t left = rows.count - first;
  return ((left < prefill_block ? left : prefill_block) + 3) / 4;
}

/// Features [begin, d_qk) of the block's keys are the row's values from `offset` (in bytes) on.
void copy_keys(const PrefillRows& rows, std::int64_t first, std::int64_t offset, std::int64_t begin,
               const PrefillTile& tile) {
  const std::int64_t stride = PrefillTile::key_stride(tile.d_qk);
  const auto bytes = static_cast<std::size_t>(tile.d_qk - begin) * sizeof(bf16);
  for (std::int64_t i = first; i < first + 4 * runs_of(rows, first); ++i) {
    bf16* key = tile.keys + i * stride;
    std::memcpy(key + begin, row_at(rows, i) + offset, bytes);
    if (tile.d_qk < stride) key[tile.d_qk] = {0};
  }
}

void copy_values(const PrefillRows& rows, std::int64_t first, std::int64_t offset, const PrefillTile& tile) {
  const __m512i zip = zip_halves();
  for (std::int64_t chunk = 0; chunk < prefill_chunks(tile.d_v); ++chunk) {
    const __mmask32 there = first32(tile.d_v - chunk * prefill_chunk);
    const std::int64_t at = offset + chunk * prefill_chunk * static_cast<std::int64_t>(sizeof(bf16));
    bf16* out = tile.values + (chunk * prefill_tile + first) * prefill_chunk;
    for (std::int64_t i = first; i < first + 4 * runs_of(rows, first); i += 2, out += 64) {
      const __m512i even = _mm512_maskz_loadu_epi16(there, row_at(rows, i) + at);
      const __m512i odd = _mm512_maskz_loadu_epi16(there, row_at(rows, i + 1) + at);
      const __m512i low = _mm512_shuffle_i64x2(even, odd, 0x44), high = _mm512_shuffle_i64x2(even, odd, 0xee);
      _mm512_storeu_si512(out, _mm512_permutexvar_epi16(zip, low));
      _mm512_storeu_si512(out + 32, _mm512_permutexvar_epi16(zip, high));
    }
  }
}

}  // namespace

void pack_prefill_weights(const bf16* weights, std::int64_t stride, std::int64_t outputs, std::int64_t d_c,
                          bf16* packed) {
  pack_rows(
      outputs, d_c,
      packed, [=](std::int64_t row, std::int64_t d, std::int64_t left) __attribute__((always_inline)) {
        const bf16* at = weights + row * stride + d;
        _mm_prefetch(reinterpret_cast<const char*>(at + 16 * stride), _MM_HINT_T1);  // the next rows
        return _mm512_maskz_loadu_epi16(first32(left), at);
      });
}

void pack_prefill_queries(const float* queries, std::int64_t stride, std::int64_t count, std::int64_t d_qk,
                          float scale, bf16* packed) {
  const __m512 factor = _mm512_set1_ps(scale * prefill_unit);
  pack_rows(
      count, d_qk,
      packed, [=](std::int64_t row, std::int64_t d, std::int64_t left) __attribute__((always_inline)) {
        const float* at = queries + row * stride + d;
        const float* next_panel = at + prefill_queries * stride;
        _mm_prefetch(reinterpret_cast<const char*>(next_panel), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(next_panel + 16), _MM_HINT_T1);
        const __m512 low = _mm512_mul_ps(factor, _mm512_maskz_loadu_ps(first16(left), at));
        const __m512 high = _mm512_mul_ps(factor, _mm512_maskz_loadu_ps(first16(left - 16), at + 16));
        return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      });
}

void decompress_block(const PrefillRows& rows, std::int64_t first, const PrefillWeights& weights,
                      const PrefillTile& tile) {
  switch (runs_of(rows, first)) {
    case 1:
      decompress_rows<1>(rows, first, weights, tile);
      break;
    case 2:
      decompress_rows<2>(rows, first, weights, tile);
      break;
    default:
      decompress_rows<3>(rows, first, weights, tile);
      break;
  }
  copy_keys(rows, first, weights.d_c * static_cast<std::int64_t>(sizeof(bf16)), weights.d_n, tile);
}

void copy_block(const PrefillRows& rows, std::int64_t first, std::int64_t key_offset,
                std::int64_t value_offset, const PrefillTile& tile) {
  copy_keys(rows, first, key_offset, 0, tile);
  copy_values(rows, first, value_offset, tile);
}

}  // namespace mla
