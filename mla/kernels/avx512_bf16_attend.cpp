// Attention over bf16 rows with products of bf16 pairs: AVX-512 with BF16. Compiled with -mavx512bf16; see
// attend.h.
//
// A block is up to 128 query rows against up to 512 cached rows, in tiles of 256 rows that stay in L2. For
// each tile: scores of 8 queries at a time, their softmax while the scores are in L1, then the sum of values,
// 8 queries x 32 features at a time. Nothing is packed but the queries; cached rows are read where they lie.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/attend.h"

namespace mla {
namespace {

constexpr int tile_rows = 256;
constexpr int group = 8;      // queries whose scores share a register
constexpr int row_block = 8;  // rows of one score block
constexpr int max_groups = AttendBlock::max_queries / group;
constexpr float log2_e = 1.44269504088896f;

using Values = const bf16*;

__m512bh as_pairs(__m512i x) {
  return reinterpret_cast<__m512bh>(x);
}

// ---------------------------------------------------------------- scores: lanes are 8 queries x 2 partial
// sums
//
// A step takes 4 features. Queries are packed as [step][8 queries][4 features]; rows come in by 64-bit
// broadcasts. Partial sum p of a query adds the pairs 2 j + p.

constexpr std::int64_t step = 4;

std::int64_t steps_of(std::int64_t d_qk) {
  return (d_qk + step - 1) / step;
}

std::int64_t packed_bytes(std::int64_t num_queries, std::int64_t d_qk) {
  return (num_queries + group - 1) / group * group * steps_of(d_qk) * step *
         static_cast<std::int64_t>(sizeof(bf16));
}

void pack(const float* const* queries, std::int64_t num_queries, std::int64_t d_qk, void* packed) {
  bf16* out = static_cast<bf16*>(packed);
  for (std::int64_t first = 0; first < num_queries; first += group, out += group * steps_of(d_qk) * step) {
    for (std::int64_t q = 0; q < group; ++q) {
      const float* query = first + q < num_queries ? queries[first + q] : nullptr;
      bf16* to = out + q * step;
      for (std::int64_t d = 0; d < d_qk; d += step, to += group * step) {
        const std::int64_t left = query ? d_qk - d : 0;
        const auto there = static_cast<__mmask8>(left >= step ? 15 : (1 << left) - 1);
        const __m128bh four = _mm_cvtneps_pbh(_mm_maskz_loadu_ps(there, query ? query + d : nullptr));
        std::memcpy(to, &four, step * sizeof(bf16));
      }
    }
  }
}

/// Lane 2 q + t = query q's score for row t of two.
__m512 pair_scores(__m512 row0, __m512 row1) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(row0, row1));
  const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(row0, row1));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

/// Scores of G groups of queries for row_block rows: scores[g][row / 2] as pair_scores gives them.
template <int G>
__attribute__((noinline)) void score_block(const bf16* queries, std::int64_t d_qk,
                                           const std::byte* const* rows, std::int64_t key_offset,
                                           float* scores, std::int64_t group_stride) {
  Values key[row_block];
  for (int r = 0; r < row_block; ++r) key[r] = reinterpret_cast<Values>(rows[r] + key_offset);
  const std::int64_t group_size = steps_of(d_qk) * group * step;
  __m512 acc[row_block][G];
#pragma GCC unroll 8
  for (int r = 0; r < row_block; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[r][g] = _mm512_setzero_ps();
  }
  std::int64_t d = 0;
  for (; d + step <= d_qk; d += step, queries += group * step) {
    __m512bh q[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) q[g] = as_pairs(_mm512_loadu_si512(queries + g * group_size));
#pragma GCC unroll 8
    for (int r = 0; r < row_block; ++r) {
      long long four;
      std::memcpy(&four, key[r] + d, sizeof four);
      const __m512bh k = as_pairs(_mm512_set1_epi64(four));
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) acc[r][g] = _mm512_dpbf16_ps(acc[r][g], q[g], k);
    }
  }
  if (d < d_qk) {  // the last 1 to 3 features; what lies behind them in the row may be anything
#pragma GCC unroll 8
    for (int r = 0; r < row_block; ++r) {
      long long four = 0;
      std::memcpy(&four, key[r] + d, static_cast<std::size_t>(d_qk - d) * sizeof(bf16));
      const __m512bh k = as_pairs(_mm512_set1_epi64(four));
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        acc[r][g] = _mm512_dpbf16_ps(acc[r][g], as_pairs(_mm512_loadu_si512(queries + g * group_size)), k);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < row_block; r += 2) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g)
      _mm512_store_ps(scores + g * group_stride + r / 2 * 16, pair_scores(acc[r][g], acc[r + 1][g]));
  }
}

// ---------------------------------------------------------------- softmax: of 8 queries, on scores still in
// L1

/// 2^x for x <= 0 to a relative error of 2e-7: x = k + f, f in [0, 1), a polynomial of degree 6 in f. 0 below
/// 2^-126.
__m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x01);
  __m512 p = _mm512_set1_ps(2.1702255e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.2439688e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6788410e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5483342e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022984e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314698e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

/// What the block keeps of 8 queries from tile to tile; lane 2 q and lane 2 q + 1 belong to query q.
struct Running {
  __m512 max;  // the same in both lanes
  __m512 sum;  // of even rows, of odd rows
};

/// Turns the scores of a tile, [pairs][8 queries x 2 rows], into weights [pairs][8] of bf16 pairs. Returns by
/// how much the sums so far must be multiplied. Scores that a query may not see are -inf.
__m512 softmax_tile(const float* scores, int pairs, float scale, Running& running, std::uint32_t* weights) {
  __m512 top = _mm512_set1_ps(-__builtin_inff());
  for (int i = 0; i < pairs; ++i) top = _mm512_max_ps(top, _mm512_load_ps(scores + i * 16));
  top = _mm512_max_ps(top, _mm512_permute_ps(top, 0xB1));
  top = _mm512_max_ps(_mm512_mul_ps(top, _mm512_set1_ps(scale)), running.max);
  // A query that has seen nothing yet: any reference will do, as long as -inf minus it is -inf.
  const __mmask16 none = _mm512_cmp_ps_mask(top, _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
  const __m512 reference = _mm512_maskz_mov_ps(static_cast<__mmask16>(~none), top);
  const __m512 shift = exp2(_mm512_sub_ps(running.max, reference));
  __m512 sum = _mm512_mul_ps(running.sum, shift);
  for (int i = 0; i < pairs; ++i) {
    const __m512 p = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + i * 16), _mm512_set1_ps(scale), reference));
    sum = _mm512_add_ps(sum, p);
    const __m256bh rounded = _mm512_cvtneps_pbh(p);
    std::memcpy(weights + i * group, &rounded, sizeof rounded);
  }
  running = {top, sum};
  return shift;
}

// ---------------------------------------------------------------- values: lanes are 32 features
//
// Two rows at a time, interleaved in registers into pairs; weights come in by 32-bit broadcasts.

struct ValueTile {
  const std::byte* const* rows;   // [2 pairs]
  const std::byte* const* ahead;  // rows of the next tile to fetch, or null
  int pairs;
  std::int64_t offset;           // bytes from a row's start to its values' first feature here
  std::int64_t ahead_offset;     // bytes from a row's start to the line to fetch
  const std::uint32_t* weights;  // [pairs][8]
  const float* shift;            // [Q] multiplies the sums so far
  float* acc;                    // [Q][stride]
  std::int64_t stride;
  __mmask32 features;  // of the 32, those that exist
  bool is_first;       // there are no sums so far
  bool is_ordered;     // the sums so far are in the features' order, else as unpacking left them
  bool to_order;       // the sums are to be put into the features' order
};

/// Pairs of lanes of (low, high) by index, for both.
void rearrange(__m512& low, __m512& high, __m512i to_low, __m512i to_high) {
  const __m512d l = _mm512_castps_pd(low), h = _mm512_castps_pd(high);
  low = _mm512_castpd_ps(_mm512_permutex2var_pd(l, to_low, h));
  high = _mm512_castpd_ps(_mm512_permutex2var_pd(l, to_high, h));
}

template <int Q>
__attribute__((noinline)) void value_block(const ValueTile& t) {
  // Unpacking leaves features 8g..8g+3 in 128-bit lane g of low and 8g+4..8g+7 in that of high.
  const auto mask0 = static_cast<__mmask16>(t.features), mask1 = static_cast<__mmask16>(t.features >> 16);
  __m512 low[Q], high[Q];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    low[q] = high[q] = _mm512_setzero_ps();
    if (t.is_first) continue;
    const __m512 shift = _mm512_set1_ps(t.shift[q]);
    low[q] = _mm512_mul_ps(shift, _mm512_maskz_loadu_ps(mask0, t.acc + q * t.stride));
    high[q] = _mm512_mul_ps(shift, _mm512_maskz_loadu_ps(mask1, t.acc + q * t.stride + 16));
    if (!t.is_ordered) continue;
    rearrange(low[q], high[q], _mm512_set_epi64(13, 12, 9, 8, 5, 4, 1, 0),
              _mm512_set_epi64(15, 14, 11, 10, 7, 6, 3, 2));
  }
  const std::uint32_t* weights = t.weights;
  for (int i = 0; i < t.pairs; ++i, weights += group) {
    const __m512i even = _mm512_maskz_loadu_epi16(t.features, t.rows[2 * i] + t.offset);
    const __m512i odd = _mm512_maskz_loadu_epi16(t.features, t.rows[2 * i + 1] + t.offset);
    if (t.ahead) {
      _mm_prefetch(reinterpret_cast<const char*>(t.ahead[2 * i] + t.ahead_offset), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(t.ahead[2 * i + 1] + t.ahead_offset), _MM_HINT_T1);
    }
    const __m512bh l = as_pairs(_mm512_unpacklo_epi16(even, odd)),
                   h = as_pairs(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) {
      const __m512bh p = as_pairs(_mm512_set1_epi32(static_cast<int>(weights[q])));
      low[q] = _mm512_dpbf16_ps(low[q], p, l);
      high[q] = _mm512_dpbf16_ps(high[q], p, h);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) {
    if (t.to_order) {
      rearrange(low[q], high[q], _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0),
                _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4));
    }
    _mm512_mask_storeu_ps(t.acc + q * t.stride, mask0, low[q]);
    _mm512_mask_storeu_ps(t.acc + q * t.stride + 16, mask1, high[q]);
  }
}

void values_of(const ValueTile& tile, std::int64_t queries) {
  switch (queries) {
    case 1:
      return value_block<1>(tile);
    case 2:
      return value_block<2>(tile);
    case 3:
      return value_block<3>(tile);
    case 4:
      return value_block<4>(tile);
    case 5:
      return value_block<5>(tile);
    case 6:
      return value_block<6>(tile);
    case 7:
      return value_block<7>(tile);
    default:
      return value_block<8>(tile);
  }
}

// ---------------------------------------------------------------- the block

/// Memory of one call; lives on the stack.
struct Work {
  alignas(64) float scores[2][tile_rows / 2 * 16];                       // of two groups
  alignas(64) std::uint32_t weights[max_groups][tile_rows / 2 * group];  // of all groups
  alignas(64) float shift[max_groups][group];
  Running running[max_groups];
};

/// Scores -inf where query `first + q` does not see row `row + r` of the tile.
void hide(const AttendBlock& b, std::int64_t first, std::int64_t row, int count, int pairs, float* scores) {
  for (int q = 0; q < group; ++q) {
    const std::int64_t seen = first + q < b.num_queries ? b.visible[first + q] - row : 0;
    for (int r = seen < 0 ? 0 : static_cast<int>(seen < count ? seen : count); r < 2 * pairs; ++r) {
      scores[r / 2 * 16 + 2 * q + r % 2] = -__builtin_inff();
    }
  }
}

void attend_groups(const AttendBlock& b, int first_group, int groups, std::int64_t row,
                   const std::byte* const* rows, int count, int padded, Work& work) {
  const std::int64_t group_values = steps_of(b.d_qk) * group * step;
  const bf16* queries = static_cast<const bf16*>(b.queries) + first_group * group_values;
  for (int r = 0; r < padded; r += row_block) {
    float* out = work.scores[0] + r / 2 * 16;
    (groups == 2 ? score_block<2> : score_block<1>)(queries, b.d_qk, rows + r, b.key_offset, out,
                                                    tile_rows / 2 * 16);
  }
  for (int g = 0; g < groups; ++g) {
    const std::int64_t first = std::int64_t{first_group + g} * group;
    const bool sees_all = first + group <= b.num_queries && b.visible[first] >= row + count;
    if (!sees_all || count < padded) hide(b, first, row, count, padded / 2, work.scores[g]);
    const __m512 shift = softmax_tile(work.scores[g], padded / 2, b.scale * log2_e,
                                      work.running[first_group + g], work.weights[first_group + g]);
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, shift);
    for (int q = 0; q < group; ++q) work.shift[first_group + g][q] = lanes[2 * q];
  }
}

void attend_values(const AttendBlock& b, std::int64_t row, const std::byte* const* rows, int padded,
                   Work& work) {
  const std::int64_t lines = (b.d_qk * static_cast<std::int64_t>(sizeof(bf16)) + 63) / 64;
  const bool has_ahead = row + 2 * tile_rows <= b.num_rows + b.num_ahead;
  for (std::int64_t f = 0; f < b.d_v; f += 32) {
    for (std::int64_t first = 0; first < b.num_queries; first += group) {
      const std::int64_t queries = b.num_queries - first < group ? b.num_queries - first : group;
      const std::int64_t left = b.d_v - f;
      // The first two groups fetch the next tile's lines, the second one those that no 32 features stand for.
      const std::int64_t line = f / 32 + (first == 0 ? 0 : b.d_v / 32);
      const bool fetches = has_ahead && first <= group && line < lines;
      const bool is_whole = left >= 32;  // fewer features leave no room for the unpacked order
      values_of({rows, fetches ? b.rows + row + tile_rows : nullptr, padded / 2,
                 b.value_offset + f * static_cast<std::int64_t>(sizeof(bf16)), b.key_offset + line * 64,
                 work.weights[first / group], work.shift[first / group], b.acc + first * b.d_v + f, b.d_v,
                 is_whole ? ~__mmask32{0} : static_cast<__mmask32>((1u << left) - 1u), row == 0, !is_whole,
                 !is_whole || row + tile_rows >= b.num_rows},
                queries);
    }
  }
}

void attend_block(const AttendBlock& b) {
  Work work;
  const int groups = static_cast<int>((b.num_queries + group - 1) / group);
  for (int g = 0; g < groups; ++g) work.running[g] = {_mm512_set1_ps(-__builtin_inff()), _mm512_setzero_ps()};

  const std::byte* padded_rows[tile_rows];
  for (std::int64_t row = 0; row < b.num_rows; row += tile_rows) {
    const int count = static_cast<int>(b.num_rows - row < tile_rows ? b.num_rows - row : tile_rows);
    const int padded = (count + row_block - 1) / row_block * row_block;
    const std::byte* const* rows = b.rows + row;
    if (count < padded) {  // a last tile that row_block does not divide: its first row again, hidden
      for (int r = 0; r < padded; ++r) padded_rows[r] = rows[r < count ? r : 0];
      rows = padded_rows;
    }
    for (int g = 0; g < groups; g += 2)
      attend_groups(b, g, groups - g < 2 ? 1 : 2, row, rows, count, padded, work);
    attend_values(b, row, rows, padded, work);
  }

  for (std::int64_t i = 0; i < b.num_queries; ++i) {
    alignas(64) float max[16], sum[16];
    _mm512_store_ps(max, work.running[i / group].max);
    _mm512_store_ps(sum, work.running[i / group].sum);
    const std::int64_t lane = i % group * 2;
    b.max[i] = max[lane];
    b.sum[i] = sum[lane] + sum[lane + 1];
  }
}

}  // namespace

const AttendKernel bf16_pair_attend{true, packed_bytes, pack, attend_block};

}  // namespace mla
