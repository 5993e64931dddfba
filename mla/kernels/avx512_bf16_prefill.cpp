// Panels of 32 queries against tiles of rows: AVX-512 with BF16 and VBMI. Compiled with -mavx512bf16; see
// prefill.h.
//
// Scores: lanes are 16 queries, a block is 32 queries by 12 rows, keys come in by 32-bit broadcasts. A
// block's scores become weights inside the next block's loop, where that costs almost nothing. Weights are
// powers of two relative to a reference of the query, a whole number that moves when a score exceeds it by 8;
// so moving it changes exponents only. Sum of values: lanes are 32 features, 8 queries at a time.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/avx512_pairs.h"
#include "mla/kernels/prefill.h"

namespace mla {
namespace {

constexpr int block_rows = static_cast<int>(prefill_block);
constexpr int lanes = 16;  // queries of a vector
constexpr int panel = static_cast<int>(prefill_queries);
constexpr float slack = 8;  // powers of two that a score may exceed its query's reference by

__m512bh spread(const void* pair) {
  std::int32_t bits;
  std::memcpy(&bits, pair, sizeof bits);
  return as_pairs(_mm512_set1_epi32(bits));
}

// ---------------------------------------------------------------- 2^x as bf16, by a table of bytes
//
// n = 128 (x + 127), rounded, holds the exponent and 7 bits of fraction f of x. Read as bf16 it would be
// 2^floor(x) (1 + f / 128); subtracting entry f turns that into the nearest to 2^x. 0 for what lies below
// 2^-127. Scores come in 128ths of powers of two: packed queries hold the scale. The error of a weight is at
// most 2^-7.2, its root mean square 2^-8.8: a third more than rounding.

struct Exponential {
  alignas(64) std::uint8_t excess[128];  // f - 128 (2^(f / 128) - 1), rounded
  float least;                           // n counts from here: adding it rounds to whole numbers
  float most;                            // that n may be: the query's reference and the slack
};

constexpr Exponential make_exponential() {
  Exponential e{};
  double power = 1;
  for (int f = 0; f < 128; ++f) {
    e.excess[f] = static_cast<std::uint8_t>(f - static_cast<int>(128 * (power - 1) + 0.5));
    power *= 1.0054299011128028213;  // 2^(1 / 128)
  }
  e.least = 12582912;  // 1.5 * 2^23
  e.most = e.least + 128 * (127 + slack);
  return e;
}

alignas(64) constexpr Exponential exponential = make_exponential();

/// What a panel knows of its queries, [32] each, in PrefillPanel::state.
struct State {
  float* reference;  // in powers of two; whole numbers
  float* bias;       // makes n of a score
  float* sum;        // of the weights
  float* acc;        // [32][features] of weights times values
  explicit State(float* state)
      : reference(state), bias(state + panel), sum(state + 2 * panel), acc(state + 3 * panel) {}
};

/// Scores that are yet to become weights: units of two rows by 16 queries.
struct Pending {
  const float* scores = nullptr;     // [unit][row of the two][16]
  std::uint32_t* weights = nullptr;  // [pair of rows][32]
  int units = 0;
  int vectors = 2;       // of queries: units of a pair of rows
  int first_vector = 0;  // of queries
  int pairs_before = 0;  // of rows of the tile

  int lane(int u) const { return (first_vector + (vectors == 2 ? u & 1 : 0)) * lanes; }
  int pair(int u) const { return vectors == 2 ? u >> 1 : u; }
};

/// The weights of unit `u`, and their sum. Returns the queries one of whose scores exceeds the reference by
/// more than the slack, or is no number: their weights and sums are not worth anything.
__attribute__((always_inline)) inline __mmask16 weigh(const Pending& pending, int u, const State& state) {
  const Exponential* e = &exponential;
  asm volatile("" : "+r"(e));  // constants stay in memory: the accumulators need the registers
  const int lane = pending.lane(u);
  const float* scores = pending.scores + u * 2 * lanes;
  const __m512 bias = _mm512_load_ps(state.bias + lane), least = _mm512_set1_ps(e->least);
  const __m512 even = _mm512_add_ps(_mm512_load_ps(scores), bias);
  const __m512 odd = _mm512_add_ps(_mm512_load_ps(scores + lanes), bias);
  const __m512i n =
      _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_castps_si512(_mm512_max_ps(even, least)),
                              _mm512_slli_epi32(_mm512_castps_si512(_mm512_max_ps(odd, least)), 16));
  const __m512i excess = _mm512_maskz_permutex2var_epi8(0x5555555555555555, _mm512_load_si512(e->excess), n,
                                                        _mm512_load_si512(e->excess + 64));
  const __m512i weights = _mm512_sub_epi16(n, excess);
  _mm512_store_si512(pending.weights + pending.pair(u) * panel + lane, weights);
  const __m512bh ones = as_pairs(_mm512_set1_epi32(0x3f803f80));
  _mm512_store_ps(state.sum + lane,
                  _mm512_dpbf16_ps(_mm512_load_ps(state.sum + lane), as_pairs(weights), ones));
  const __m512 most = _mm512_set1_ps(e->most);
  return static_cast<__mmask16>(_mm512_cmp_ps_mask(even, most, _CMP_NLE_UQ) |
                                _mm512_cmp_ps_mask(odd, most, _CMP_NLE_UQ));
}

__mmask16 weigh_all(const Pending& pending, const State& state) {
  __mmask16 exceeds = 0;
  for (int u = 0; u < pending.units; ++u) exceeds |= weigh(pending, u, state);
  return exceeds;
}

// ---------------------------------------------------------------- scores

/// Cache lines that a block fetches.
constexpr int lines_ahead = 2 * block_rows;

struct ScoreBlock {
  const bf16* queries;  // of the block's first vector: [step][32][2]
  std::int64_t steps;
  const bf16* keys;
  std::int64_t key_stride;
  const State* state;
  int first;          // vector of queries
  int seen;           // rows of the block that the first query of all sees, less one
  float* scores;      // [pair of rows][Q][row of the two][16]
  const char* ahead;  // lines to fetch
  Pending pending;
};

/// Scores of Q vectors of queries for N rows; the pending scores become weights meanwhile. Returns whether
/// one of those exceeds its reference too far. `masked`: scores of rows that a query does not see are -inf.
template <int Q, int N, bool masked>
__attribute__((noinline)) bool score_block(const ScoreBlock& b) {
  __m512 acc[N][Q];
#pragma GCC unroll 12
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < Q; ++j) acc[i][j] = _mm512_setzero_ps();
  }
  const bf16* queries = b.queries;
  const bf16* keys[3] = {b.keys, b.keys + 4 * b.key_stride, b.keys + 8 * b.key_stride};
  std::int64_t stride = b.key_stride, stride3 = 3 * b.key_stride;
  const bf16* next = b.keys + block_rows * b.key_stride;
  const State state = *b.state;
  const Pending pending = b.pending;
  __mmask16 exceeds = 0;
  std::int64_t step = 0;
  for (int u = 0; u < block_rows; ++u) {
    for (const std::int64_t end = b.steps * (u + 1) / block_rows; step < end; ++step) {
      __m512bh q[Q];
#pragma GCC unroll 2
      for (int j = 0; j < Q; ++j) q[j] = as_pairs(_mm512_load_si512(queries + j * 2 * lanes));
      asm volatile("" : "+r"(stride), "+r"(stride3));  // or there would be twelve pointers
#pragma GCC unroll 12
      for (int i = 0; i < N; ++i) {
        const __m512bh k = spread(keys[i / 4] + (i % 4 == 3 ? stride3 : i % 4 * stride));
#pragma GCC unroll 2
        for (int j = 0; j < Q; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], q[j], k);
      }
      queries += 2 * panel;
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) keys[r] += 2;
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
      next += 2 * block_rows;
    }
    if (u < pending.units) exceeds |= weigh(pending, u, state);
    _mm_prefetch(b.ahead + 128 * u, _MM_HINT_T1);
    _mm_prefetch(b.ahead + 128 * u + 64, _MM_HINT_T1);
  }
#pragma GCC unroll 2
  for (int j = 0; j < Q; ++j) {
    if constexpr (masked) {
      const __m512i seen =
          _mm512_add_epi32(_mm512_set1_epi32(b.seen + (b.first + j) * lanes),
                           _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
#pragma GCC unroll 12
      for (int i = 0; i < N; ++i) {
        acc[i][j] = _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()),
                                       _mm512_cmpge_epi32_mask(seen, _mm512_set1_epi32(i)), acc[i][j]);
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < N; ++i) _mm512_store_ps(b.scores + ((i / 2 * Q + j) * 2 + i % 2) * lanes, acc[i][j]);
  }
  return exceeds != 0;
}

using ScoreFunction = bool (*)(const ScoreBlock&);

ScoreFunction score_function(int vectors, int rows, bool masked) {
  static constexpr ScoreFunction functions[2][3][2] = {
      {{score_block<1, 4, false>, score_block<1, 4, true>},
       {score_block<1, 8, false>, score_block<1, 8, true>},
       {score_block<1, 12, false>, score_block<1, 12, true>}},
      {{score_block<2, 4, false>, score_block<2, 4, true>},
       {score_block<2, 8, false>, score_block<2, 8, true>},
       {score_block<2, 12, false>, score_block<2, 12, true>}}};
  return functions[vectors - 1][rows / 4 - 1][masked];
}

// ---------------------------------------------------------------- references that move

__m512 bias_of(__m512 reference) {
  return _mm512_fnmadd_ps(reference, _mm512_set1_ps(128), _mm512_set1_ps(exponential.least + 127 * 128));
}

/// Divides the bf16 weights' pairs by 2^powers of each lane, down to zero.
void shift_weights(std::uint32_t* weights, int pairs, __m512 powers) {
  const __m512i exponents = _mm512_slli_epi32(_mm512_cvtps_epi32(powers), 7);
  const __m512i both = _mm512_or_si512(exponents, _mm512_slli_epi32(exponents, 16));
  for (int p = 0; p < pairs; ++p) {
    std::uint32_t* at = weights + p * panel;
    _mm512_store_si512(at, _mm512_subs_epu16(_mm512_load_si512(at), both));
  }
}

/// Raises the references of one vector of queries that `block`'s scores exceed, and brings the sums, the
/// tile's weights before the block and the accumulators, unless this is the first tile, in line. The sum of a
/// query with a score that is no number becomes none either, for good.
void raise_references(const Pending& block, int vector, bool is_first, std::int64_t features,
                      const State& state) {
  const int lane = block.lane(vector);
  __m512 top = _mm512_set1_ps(-__builtin_inff());
  __mmask16 broken = 0;
  for (int row = 0; row < 2 * block.units; ++row) {
    if (row / 2 % block.vectors != vector) continue;
    const __m512 score = _mm512_load_ps(block.scores + row * lanes);
    top = _mm512_max_ps(score, top);  // top, if the score is no number
    broken = static_cast<__mmask16>(broken | _mm512_cmp_ps_mask(score, score, _CMP_UNORD_Q));
  }
  const __m512 old = _mm512_load_ps(state.reference + lane);
  const __mmask16 exceeds = _mm512_cmp_ps_mask(_mm512_add_ps(top, _mm512_load_ps(state.bias + lane)),
                                               _mm512_set1_ps(exponential.most), _CMP_GT_OQ);
  const __m512 scaled = _mm512_mul_ps(top, _mm512_set1_ps(1.0f / 128));
  const __m512 reference = _mm512_mask_roundscale_ps(old, exceeds, scaled, _MM_FROUND_TO_POS_INF);
  const __m512 powers = _mm512_min_ps(_mm512_sub_ps(reference, old), _mm512_set1_ps(255));
  const __m512 factor = _mm512_scalef_ps(_mm512_set1_ps(1), _mm512_sub_ps(_mm512_setzero_ps(), powers));
  _mm512_store_ps(state.reference + lane, reference);
  _mm512_store_ps(state.bias + lane, bias_of(reference));
  const __m512 sum = _mm512_mul_ps(_mm512_load_ps(state.sum + lane), factor);
  _mm512_store_ps(state.sum + lane, _mm512_mask_mov_ps(sum, broken, _mm512_set1_ps(__builtin_nanf(""))));
  shift_weights(block.weights - block.pairs_before * panel + lane, block.pairs_before, powers);
  if (is_first) return;
  alignas(64) float factors[lanes];
  _mm512_store_ps(factors, factor);
  for (int q = 0; q < lanes; ++q) {
    float* acc = state.acc + (lane + q) * features;
    for (std::int64_t f = 0; factors[q] != 1 && f < features; f += lanes)
      _mm512_store_ps(acc + f, _mm512_mul_ps(_mm512_load_ps(acc + f), _mm512_set1_ps(factors[q])));
  }
}

// ---------------------------------------------------------------- values

/// acc[8 queries][32 features], `stride` apart, += weights [pairs][32] times values [pairs][32][2].
__attribute__((noinline)) void value_block(const std::uint32_t* weights, const bf16* values, int pairs,
                                           bool is_first, float* acc, std::int64_t stride) {
  constexpr int queries = 8;
  __m512 low[queries], high[queries];
#pragma GCC unroll 8
  for (int q = 0; q < queries; ++q) {
    low[q] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(acc + q * stride);
    high[q] = is_first ? _mm512_setzero_ps() : _mm512_load_ps(acc + q * stride + lanes);
  }
  for (int p = 0; p < pairs; ++p, weights += panel, values += 2 * prefill_chunk) {
    const __m512bh v0 = as_pairs(_mm512_load_si512(values)),
                   v1 = as_pairs(_mm512_load_si512(values + 2 * lanes));
#pragma GCC unroll 8
    for (int q = 0; q < queries; ++q) {
      const __m512bh weight = spread(weights + q);
      low[q] = _mm512_dpbf16_ps(low[q], weight, v0);
      high[q] = _mm512_dpbf16_ps(high[q], weight, v1);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < queries; ++q) {
    _mm512_store_ps(acc + q * stride, low[q]);
    _mm512_store_ps(acc + q * stride + lanes, high[q]);
  }
}

int at_most(std::int64_t a, std::int64_t b) {
  return static_cast<int>(a < b ? a : b);
}

/// Rows of a tile that query `i` sees.
int seen_rows(const PrefillPanel& p, std::int64_t i, std::int64_t first_row, std::int64_t count) {
  return at_most(p.first_row + i + 1 - first_row, count);
}

void add_values(const PrefillPanel& p, const PrefillTile& tile, std::int64_t first_row, std::int64_t count,
                const std::uint32_t* weights, const State& state) {
  const std::int64_t features = prefill_chunks(tile.d_v) * prefill_chunk;
  for (std::int64_t f = 0; f < features; f += prefill_chunk) {
    for (std::int64_t q = 0; q < p.count; q += 8) {
      const int seen = seen_rows(p, at_most(q + 8, p.count) - 1, first_row, count);
      if (seen <= 0) continue;
      value_block(weights + q, tile.values + f * prefill_tile, (seen + 1) / 2, first_row == 0,
                  state.acc + q * features + f, features);
    }
  }
}

}  // namespace

void begin_prefill(const PrefillPanel& p) {
  const State state(p.state);
  for (int q = 0; q < panel; q += lanes) {
    const __m512 lowest = _mm512_set1_ps(-1e30f);  // any score exceeds it
    _mm512_store_ps(state.reference + q, lowest);
    _mm512_store_ps(state.bias + q, bias_of(lowest));
    _mm512_store_ps(state.sum + q, _mm512_setzero_ps());
  }
}

void attend_prefill(const PrefillPanel& p, const PrefillTile& tile, std::int64_t first_row,
                    std::int64_t count) {
  alignas(64) std::uint32_t weights[prefill_tile / 2 * prefill_queries];
  alignas(64) float scores[2][block_rows * panel];
  alignas(64) float sums[panel];  // before the pending block
  const State state(p.state);
  const std::int64_t stride = PrefillTile::key_stride(tile.d_qk);
  const int vectors = p.count > lanes ? 2 : 1;
  const int rows = seen_rows(p, p.count - 1, first_row, count);
  const int first_vector_rows = seen_rows(p, at_most(p.count, lanes) - 1, first_row, count);
  ScoreBlock b{};
  b.steps = stride / 2;
  b.key_stride = stride;
  b.state = &state;
  const auto settle = [&] {  // the pending block again, with references that its scores do not exceed
    std::memcpy(state.sum, sums, sizeof sums);
    for (int v = 0; v < b.pending.vectors; ++v) {
      raise_references(b.pending, v, first_row == 0, prefill_chunks(tile.d_v) * prefill_chunk, state);
    }
    weigh_all(b.pending, state);
  };
  const char* ahead = static_cast<const char*>(p.ahead);
  for (int row = 0; row < rows; row += block_rows) {
    const int size = at_most((rows - row + 3) / 4 * 4, block_rows);
    b.first = row < first_vector_rows ? 0 : vectors - 1;
    b.queries = p.queries + b.first * 2 * lanes;
    b.keys = tile.keys + row * stride;
    b.seen = at_most(p.first_row - first_row - row, prefill_tile);
    b.scores = scores[row / block_rows % 2];
    b.ahead = ahead + at_most(row / block_rows * lines_ahead * 64, p.ahead_bytes);
    const int of_block = vectors - b.first;
    const bool is_masked = b.seen + b.first * lanes < size - 1;
    if (score_function(of_block, size, is_masked)(b)) settle();
    std::memcpy(sums, state.sum, sizeof sums);
    b.pending = {b.scores, weights + row / 2 * panel, size / 2 * of_block, of_block, b.first, row / 2};
  }
  if (weigh_all(b.pending, state) != 0) settle();
  add_values(p, tile, first_row, count, weights, state);
}

void end_prefill(const PrefillPanel& p, std::int64_t d_v, float* out, std::int64_t stride) {
  const State state(p.state);
  const std::int64_t features = prefill_chunks(d_v) * prefill_chunk;
  for (std::int64_t q = 0; q < p.count; ++q) {
    const __m512 inverse = _mm512_set1_ps(1 / state.sum[q]);
    for (std::int64_t f = 0; f < d_v; f += lanes) {
      _mm_prefetch(reinterpret_cast<const char*>(out + (q + 8) * stride + f), _MM_HINT_T0);
      const auto there = static_cast<__mmask16>(d_v - f >= lanes ? 0xffff : (1 << (d_v - f)) - 1);
      _mm512_mask_storeu_ps(out + q * stride + f, there,
                            _mm512_mul_ps(inverse, _mm512_load_ps(state.acc + q * features + f)));
    }
  }
}

}  // namespace mla
