// Attention over bf16 rows with products of bf16 pairs: AVX-512 with BF16. Compiled with -mavx512bf16; see
// attend.h.
//
// A block is up to 128 query rows against up to 512 cached rows, in tiles of 256 rows that stay in L2. For
// each tile: scores of a group of queries, their softmax while the scores are in L1, then the sum of values,
// 8 queries x 32 features at a time. Nothing is packed but the queries; cached rows are read where they lie.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_values.h"

namespace mla {
namespace {

constexpr int tile_rows = 256;
constexpr int row_block = 8;  // rows of one score block
constexpr int max_groups = AttendBlock::max_queries / 4;
constexpr float log2_e = 1.44269504088896f;

using Values = const bf16*;

/// How a group of queries lies in the 16 lanes of a register: P partial sums of each of 16 / P queries. A
/// step takes 2 P features, a pair for each partial sum; P rows' scores of the group fill a register. P = 2
/// makes groups of 8 queries, P = 4 groups of 4 for what 8 does not divide.
template <int P>
struct Lanes {
  static constexpr int queries = 16 / P;
  static constexpr int step = 2 * P;
  static std::int64_t steps(std::int64_t d_qk) { return (d_qk + step - 1) / step; }
  /// Values of one packed group: [step][query][2 P features].
  static std::int64_t packed(std::int64_t d_qk) { return steps(d_qk) * 32; }
};

/// The step's features of a row, in every query's lanes.
template <int P>
__m512bh spread(Values row) {
  if constexpr (P == 2) {
    long long four;
    std::memcpy(&four, row, sizeof four);
    return as_pairs(_mm512_set1_epi64(four));
  } else {
    return as_pairs(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row))));
  }
}

// ---------------------------------------------------------------- packed queries: groups of 8, then groups
// of 4

std::int64_t packed_bytes(std::int64_t num_queries, std::int64_t d_qk) {
  return (num_queries + 7) / 8 * 8 * Lanes<4>::steps(d_qk) * Lanes<4>::step *
         static_cast<std::int64_t>(sizeof(bf16));
}

template <int P>
void pack_group(const float* const* queries, std::int64_t count, std::int64_t d_qk, bf16* out) {
  constexpr int step = Lanes<P>::step;
  for (std::int64_t q = 0; q < Lanes<P>::queries; ++q) {
    bf16* to = out + q * step;
    for (std::int64_t d = 0; d < d_qk; d += step, to += 32) {
      const std::int64_t left = q < count ? d_qk - d : 0;
      const auto there = static_cast<__mmask8>(left >= step ? (1 << step) - 1 : (1 << left) - 1);
      const __m128bh values =
          _mm256_cvtneps_pbh(_mm256_maskz_loadu_ps(there, left > 0 ? queries[q] + d : nullptr));
      std::memcpy(to, &values, step * sizeof(bf16));
    }
  }
}

void pack(const float* const* queries, std::int64_t num_queries, std::int64_t num_fours, std::int64_t d_qk,
          void* packed) {
  bf16* out = static_cast<bf16*>(packed);
  const std::int64_t eights = num_queries - num_fours;
  for (std::int64_t q = 0; q < eights; q += 8, out += Lanes<2>::packed(d_qk))
    pack_group<2>(queries + q, eights - q, d_qk, out);
  for (std::int64_t q = eights; q < num_queries; q += 4, out += Lanes<4>::packed(d_qk)) {
    pack_group<4>(queries + q, num_queries - q, d_qk, out);
  }
}

// ---------------------------------------------------------------- scores

/// Lane P q + t = query q's score for row t of P.
__m512 row_scores(const __m512 (&row)[2]) {
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
  const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}
__m512 row_scores(const __m512 (&row)[4]) {
  const __m512 x = _mm512_add_ps(_mm512_unpacklo_ps(row[0], row[1]), _mm512_unpackhi_ps(row[0], row[1]));
  const __m512 y = _mm512_add_ps(_mm512_unpacklo_ps(row[2], row[3]), _mm512_unpackhi_ps(row[2], row[3]));
  const __m512d a = _mm512_castps_pd(x), b = _mm512_castps_pd(y);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

/// Scores of G groups of queries for row_block rows: scores[g][row / P] as row_scores gives them.
template <int P, int G>
__attribute__((noinline)) void score_block(const bf16* queries, std::int64_t d_qk,
                                           const std::byte* const* rows, std::int64_t key_offset,
                                           float* scores, std::int64_t group_stride) {
  constexpr int step = Lanes<P>::step;
  const std::int64_t group_values = Lanes<P>::packed(d_qk);
  Values key[row_block];
  for (int r = 0; r < row_block; ++r) key[r] = reinterpret_cast<Values>(rows[r] + key_offset);
  __m512 acc[G][row_block];
#pragma GCC unroll 8
  for (int r = 0; r < row_block; ++r) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) acc[g][r] = _mm512_setzero_ps();
  }
  std::int64_t d = 0;
  for (; d + step <= d_qk; d += step, queries += 32) {
    __m512bh q[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) q[g] = as_pairs(_mm512_loadu_si512(queries + g * group_values));
#pragma GCC unroll 8
    for (int r = 0; r < row_block; ++r) {
      const __m512bh k = spread<P>(key[r] + d);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) acc[g][r] = _mm512_dpbf16_ps(acc[g][r], q[g], k);
    }
  }
  if (d < d_qk) {  // what lies behind the last features in the row may be anything
#pragma GCC unroll 8
    for (int r = 0; r < row_block; ++r) {
      bf16 last[step] = {};
      std::memcpy(last, key[r] + d, static_cast<std::size_t>(d_qk - d) * sizeof(bf16));
      const __m512bh k = spread<P>(last);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        acc[g][r] = _mm512_dpbf16_ps(acc[g][r], as_pairs(_mm512_loadu_si512(queries + g * group_values)), k);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < row_block; r += P) {
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      __m512 some[P];
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) some[i] = acc[g][r + i];
      _mm512_store_ps(scores + g * group_stride + r / P * 16, row_scores(some));
    }
  }
}

// ---------------------------------------------------------------- softmax: of a group, on scores still in L1

/// 2^x for x <= 0 to a relative error of 2e-7: x = k + f, f in [0, 1), a polynomial of degree 6 in f.
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

/// What the block keeps of a group from tile to tile; P lanes belong to a query.
struct Running {
  __m512 max;  // the same in all lanes of a query
  __m512 sum;  // of every P-th row
};

/// Turns the scores of a tile, [padded / P][16], into weights, [pairs of rows][queries] of bf16 pairs.
/// Returns by how much the sums so far must be multiplied. Scores that a query may not see are -inf.
template <int P>
__m512 softmax_tile(const float* scores, int padded, float scale, Running& running, std::uint32_t* weights) {
  __m512 top = _mm512_set1_ps(-__builtin_inff());
  for (int i = 0; i < padded / P; ++i) top = _mm512_max_ps(top, _mm512_load_ps(scores + i * 16));
  top = _mm512_max_ps(top, _mm512_permute_ps(top, 0xB1));
  if (P == 4) top = _mm512_max_ps(top, _mm512_permute_ps(top, 0x4E));
  top = _mm512_max_ps(_mm512_mul_ps(top, _mm512_set1_ps(scale)), running.max);
  // A query that has seen nothing yet: any reference will do, as long as -inf minus it is -inf.
  const __mmask16 none = _mm512_cmp_ps_mask(top, _mm512_set1_ps(-__builtin_inff()), _CMP_EQ_OQ);
  const __m512 reference = _mm512_maskz_mov_ps(static_cast<__mmask16>(~none), top);
  const __m512 shift = exp2(_mm512_sub_ps(running.max, reference));
  __m512 sum = _mm512_mul_ps(running.sum, shift);
  for (int i = 0; i < padded / P; ++i) {
    const __m512 p = exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + i * 16), _mm512_set1_ps(scale), reference));
    sum = _mm512_add_ps(sum, p);
    __m256i rounded =
        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(p));  // P = 4: two pairs of rows of each query
    if (P == 4) rounded = _mm256_permutevar8x32_epi32(rounded, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    std::memcpy(weights + i * 8, &rounded, sizeof rounded);
  }
  running = {top, sum};
  return shift;
}

// ---------------------------------------------------------------- the block

/// A group of queries: where it is in the block.
struct Group {
  int rows;  // of the present tile that it works on: those that a query sees, rounded up to row_block
  std::int64_t first;    // query
  std::int64_t queries;  // that exist, at most 16 / partial_sums
  int partial_sums;      // P
  const bf16* packed;
  std::uint32_t* weights;
  float* shift;
};

/// Memory of one call; lives on the stack.
struct Work {
  alignas(64) float scores[2][tile_rows / 2 * 16];                              // of two groups
  alignas(64) std::uint32_t weights[AttendBlock::max_queries * tile_rows / 2];  // [group][pair][query]
  alignas(64) float shift[AttendBlock::max_queries];
  Running running[max_groups];
  Group groups[max_groups];
  int num_groups = 0;
};

void list_groups(const AttendBlock& b, Work& work) {
  const std::int64_t eights = b.num_queries - b.num_fours;
  const bf16* packed = static_cast<const bf16*>(b.queries);
  for (std::int64_t first = 0; first < b.num_queries;) {
    const bool is_eight = first < eights;
    const std::int64_t size = is_eight ? 8 : 4, left = (is_eight ? eights : b.num_queries) - first;
    work.running[work.num_groups] = {_mm512_set1_ps(-__builtin_inff()), _mm512_setzero_ps()};
    work.groups[work.num_groups++] = {0,
                                      first,
                                      left < size ? left : size,
                                      is_eight ? 2 : 4,
                                      packed,
                                      work.weights + first * tile_rows / 2,
                                      work.shift + first};
    packed += is_eight ? Lanes<2>::packed(b.d_qk) : Lanes<4>::packed(b.d_qk);
    first += size;
  }
}

/// Part of the rows: up to tile_rows of them, filled up to a multiple of row_block with rows that nobody
/// sees.
struct Tile {
  std::int64_t first;            // of the block's rows
  const std::byte* const* rows;  // [padded]
  int count, padded;
};

/// Scores -inf where a query of the group does not see a row of the tile.
template <int P>
void hide(const AttendBlock& b, const Group& group, const Tile& tile, float* scores) {
  for (int q = 0; q < Lanes<P>::queries; ++q) {
    const std::int64_t seen = q < group.queries ? b.visible[group.first + q] - tile.first : 0;
    for (int r = seen < 0 ? 0 : static_cast<int>(seen < tile.count ? seen : tile.count); r < group.rows;
         ++r) {
      scores[r / P * 16 + P * q + r % P] = -__builtin_inff();
    }
  }
}

/// Weights of one or two neighbouring groups, the second of which sees no less than the first.
template <int P>
void weigh(const AttendBlock& b, const Tile& tile, int first_group, int count, Work& work) {
  const Group* groups = work.groups + first_group;
  for (int r = 0; r < groups[count - 1].rows; r += row_block) {
    float* out = work.scores[0] + r / P * 16;
    (count == 2 ? score_block<P, 2> : score_block<P, 1>)(groups[0].packed, b.d_qk, tile.rows + r,
                                                         b.key_offset, out, tile_rows / 2 * 16);
  }
  for (int g = 0; g < count; ++g) {
    const Group& group = groups[g];
    const bool all_see =
        group.queries == Lanes<P>::queries && b.visible[group.first] >= tile.first + group.rows;
    if (!all_see) hide<P>(b, group, tile, work.scores[g]);
    const __m512 shift = softmax_tile<P>(work.scores[g], group.rows, b.scale * log2_e,
                                         work.running[first_group + g], group.weights);
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, shift);
    for (int q = 0; q < Lanes<P>::queries; ++q) group.shift[q] = lanes[P * q];
  }
}

void weigh_all(const AttendBlock& b, const Tile& tile, Work& work) {
  for (int g = 0; g < work.num_groups; ++g) {
    Group& group = work.groups[g];
    const std::int64_t seen = b.visible[group.first + group.queries - 1] - tile.first;
    const std::int64_t rows = seen < 0 ? 0 : seen < tile.count ? seen : tile.count;
    group.rows = static_cast<int>((rows + row_block - 1) / row_block * row_block);
  }
  for (int g = 0; g < work.num_groups;) {
    const int p = work.groups[g].partial_sums;
    const int count = g + 1 < work.num_groups && work.groups[g + 1].partial_sums == p ? 2 : 1;
    (p == 2 ? weigh<2> : weigh<4>)(b, tile, g, count, work);
    g += count;
  }
}

void add_values(const AttendBlock& b, const Tile& tile, const Work& work) {
  constexpr std::int64_t element = sizeof(bf16);
  const std::int64_t lines = (b.d_qk * element + 63) / 64;
  const bool has_ahead = tile.first + 2 * tile_rows <= b.num_rows + b.num_ahead;
  for (std::int64_t f = 0; f < b.d_v; f += 32) {
    const std::int64_t left = b.d_v - f;
    const bool is_whole = left >= 32;  // fewer features leave no room for the unpacked order
    for (int g = 0; g < work.num_groups; ++g) {
      const Group& group = work.groups[g];
      // The first two groups fetch the next tile's lines, the second one those that no 32 features stand for.
      const std::int64_t line = f / 32 + (g == 0 ? 0 : b.d_v / 32);
      const bool fetches = has_ahead && g <= 1 && line < lines;
      values_of({tile.rows, fetches ? b.rows + tile.first + tile_rows : nullptr, group.rows / 2,
                 b.value_offset + f * element, b.key_offset + line * 64, group.weights,
                 16 / group.partial_sums, group.shift, b.acc + group.first * b.d_v + f, b.d_v,
                 is_whole ? ~__mmask32{0} : static_cast<__mmask32>((1u << left) - 1u), tile.first == 0,
                 !is_whole, !is_whole || tile.first + tile_rows >= b.num_rows},
                group.queries);
    }
  }
}

void attend_block(const AttendBlock& b) {
  Work work;
  list_groups(b, work);
  const std::byte* padded_rows[tile_rows];
  for (std::int64_t row = 0; row < b.num_rows; row += tile_rows) {
    const int count = static_cast<int>(b.num_rows - row < tile_rows ? b.num_rows - row : tile_rows);
    Tile tile{row, b.rows + row, count, (count + row_block - 1) / row_block * row_block};
    if (count < tile.padded) {
      for (int r = 0; r < tile.padded; ++r) padded_rows[r] = tile.rows[r < count ? r : 0];
      tile.rows = padded_rows;
    }
    weigh_all(b, tile, work);
    add_values(b, tile, work);
  }
  for (int g = 0; g < work.num_groups; ++g) {
    const Group& group = work.groups[g];
    alignas(64) float max[16], sum[16];
    _mm512_store_ps(max, work.running[g].max);
    _mm512_store_ps(sum, work.running[g].sum);
    for (std::int64_t q = 0; q < group.queries; ++q) {
      const std::int64_t lane = q * group.partial_sums;
      b.max[group.first + q] = max[lane];
      b.sum[group.first + q] = sum[lane] + sum[lane + 1];
      if (group.partial_sums == 4) b.sum[group.first + q] += sum[lane + 2] + sum[lane + 3];
    }
  }
}

}  // namespace

const AttendKernel bf16_pair_attend{true, packed_bytes, pack, attend_block};

}  // namespace mla
