// Attention over int8 latents with products of byte quadruples: AVX-512 with VNNI and BF16. Compiled with
// -mavx512vnni -mavx512bf16; see attend.h and latent_row.h.
//
// Queries are quantised too: q = code * step, the code an unsigned byte with 128 added, k_rope's part in bf16
// divided by the step. A score is then (sum of code products + sum of bf16 products) * step * row scale. Sums
// begin at 1.5 * 2^23 as a float's bits, less what the 128 add, so that the integer sum is a float at once
// and the bf16 products go on top of it.
//
// Weights of the values are bytes. The scale of a row goes into its score as a logarithm, so that what is
// rounded is the weight of the row's codes; a tile's largest weight becomes 255. Where few rows have most of
// a tile's weight, rounding would lose too much of the rest: such a query gets its weights' remainders in a
// second round of products.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_fold.h"
#include "mla/kernels/avx512_vnni_groups.h"
#include "mla/kernels/avx512_vnni_scores.h"
#include "mla/kernels/avx512_vnni_softmax.h"
#include "mla/kernels/avx512_vnni_values.h"
#include "mla/kernels/latent_row.h"

namespace mla {
namespace {

constexpr float log2_e = 1.44269504088896f;

/// Four rows at a time: what lies behind their codes.
void read_factors(const Tile& tile, const AttendRows& rows, const LatentRow& at, RowFactors& f) {
  const __m128i starts = _mm_set1_epi32(sum_start);
  for (int r = 0; r < tile.padded; r += 4) {
    const std::byte* from = tile.runs[r / 4] + rows.key_offset + at.scales;
    __m128i row[4];
    for (int i = 0; i < 4; ++i)
      row[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * rows.row_stride));
    _mm_store_si128(reinterpret_cast<__m128i*>(f.start[r]),
                    _mm_add_epi32(_mm_unpacklo_epi64(row[0], row[1]), starts));
    _mm_store_si128(reinterpret_cast<__m128i*>(f.start[r + 2]),
                    _mm_add_epi32(_mm_unpacklo_epi64(row[2], row[3]), starts));
    const __m128 near = _mm_castsi128_ps(_mm_unpackhi_epi64(row[0], row[1]));  // scale, log2, scale, log2
    const __m128 far = _mm_castsi128_ps(_mm_unpackhi_epi64(row[2], row[3]));
    const __m128 scale = _mm_shuffle_ps(near, far, 0x88);
    _mm_store_ps(f.scale + r, scale);
    _mm_store_ps(f.log2_scale + r, _mm_shuffle_ps(near, far, 0xDD));
    // Rows that nobody sees must not make 0 times infinity of the sum.
    _mm_store_ps(f.inverse + r, _mm_div_ps(_mm_set1_ps(1.0f), _mm_max_ps(scale, _mm_set1_ps(0x1p-110f))));
  }
}

/// Scores -inf where a query of the group does not see a row of the tile.
template <int P>
void hide(const AttendRows& rows, const Group& group, const Tile& tile, float* scores) {
  for (int q = 0; q < Lanes<P>::queries; ++q) {
    const std::int64_t seen = q < group.queries ? rows.visible[group.first + q] - tile.first : 0;
    for (int r = seen < 0 ? 0 : static_cast<int>(seen < group.rows ? seen : group.rows); r < group.rows; ++r)
      scores[r / P * 16 + P * q + r % P] = -__builtin_inff();
  }
}

template <int P>
bool all_see(const AttendRows& rows, const Group& group, const Tile& tile) {
  if (group.queries < Lanes<P>::queries) return false;
  for (std::int64_t q = 0; q < group.queries; ++q) {
    if (rows.visible[group.first + q] < tile.first + group.rows) return false;
  }
  return true;
}

template <int P>
ScoreBlock score_block_of(const AttendRows& rows, const LatentRow& at, const Group& group, Work& work,
                          int index) {
  return {{},
          rows.row_stride,
          group.packed + line,
          group_bytes<P>(at.d_c, at.d_r),
          at.d_c,
          at.d_r,
          at.rope,
          &work.factors,
          0,
          work.scales + index,
          work.scores[index],
          tile_rows / 2 * 16,
          &work.ahead.fetch};
}

void place_rows(const AttendRows& rows, const Tile& tile, int first, int runs, ScoreBlock& block) {
  block.first = first;
  for (int i = 0; i < runs; ++i) block.runs[i] = tile.runs[first / 4 + i] + rows.key_offset;
}

/// Scores of neighbouring groups into work.scores: one or two of P = 2, or of P = 4.
template <int P>
void score(const AttendRows& rows, const LatentRow& at, const Tile& tile, const Group* groups, int count,
           int most, Work& work) {
  ScoreBlock block = score_block_of<P>(rows, at, groups[0], work, 0);
  int r = 0;
  const auto take = [&](auto runs) {
    constexpr int R = decltype(runs)::value;
    place_rows(rows, tile, r, R, block);
    if (count == 2) {
      score_block<P, 2, R>(block);
    } else {
      score_block<P, 1, R>(block);
    }
    r += 4 * R;
  };
  while (most - r >= 12 && most - r != 16) take(Count<3>{});
  while (r < most) take(Count<2>{});
}

/// The same of one or two of P = 2 and one of P = 4.
void score_mixed(const AttendRows& rows, const LatentRow& at, const Tile& tile, const Group* groups,
                 int eights, int most, Work& work) {
  ScoreBlock block = score_block_of<2>(rows, at, groups[0], work, 0);
  ScoreBlock four = score_block_of<4>(rows, at, groups[eights], work, eights);
  for (int r = 0; r < most; r += row_block) {
    place_rows(rows, tile, r, 2, block);
    four.first = r;
    (eights == 2 ? mixed_block<2> : mixed_block<1>)(block, four);
  }
}

template <int P>
void softmax(const AttendRows& rows, const Tile& tile, Group& group, float* scores, Work& work) {
  if (!all_see<P>(rows, group, tile)) hide<P>(rows, group, tile, scores);
  group.has_remainders =
      softmax_tile<P>({scores, group.rows, work.factors.inverse, group.weights, group.remainders},
                      *group.running, group.shift);
}

/// Weights of neighbouring groups: `eights` of P = 2, then `fours` of P = 4.
void weigh(const AttendQueries& q, const AttendRows& rows, const LatentRow& at, const Tile& tile,
           Group* groups, int eights, int fours, Work& work) {
  int most = 0;
  for (int g = 0; g < eights + fours; ++g) {
    work.scales[g] = _mm512_mul_ps(_mm512_load_ps(groups[g].packed), _mm512_set1_ps(q.scale * log2_e));
    most = groups[g].rows > most ? groups[g].rows : most;
  }
  if (eights > 0 && fours > 0) {
    score_mixed(rows, at, tile, groups, eights, most, work);
  } else if (eights > 0) {
    score<2>(rows, at, tile, groups, eights, most, work);
  } else {
    score<4>(rows, at, tile, groups, fours, most, work);
  }
  for (int g = 0; g < eights + fours; ++g)
    (g < eights ? softmax<2> : softmax<4>)(rows, tile, groups[g], work.scores[g], work);
}

/// Steps of the scores of groups that are taken together.
std::int64_t score_steps(const LatentRow& at, const Tile& tile, bool mixed, int fours) {
  const std::int64_t bytes = fours > 0 ? Lanes<4>::bytes : Lanes<2>::bytes;
  return tile.padded / (mixed ? row_block : 4 * most_runs) * ((at.d_c + 2 * at.d_r) / bytes);
}

/// Runs of the next tile that scores fetch, if they are one round; the sums of values fetch the others: a CPU
/// can wait for few lines at a time. Of more rounds, none: lines would come in long before they are wanted
/// and drive out of L2 what the other rounds want.
constexpr int runs_of_scores = TileLines::num_runs * 5 / 8;

/// Weights of all groups.
void weigh_all(const AttendQueries& q, const AttendRows& rows, const LatentRow& at, const Tile& tile,
               Work& work) {
  for (int g = 0; g < work.num_groups; ++g) {
    Group& group = work.groups[g];
    std::int64_t seen = 0;
    for (std::int64_t i = 0; i < group.queries; ++i) {
      const std::int64_t sees = rows.visible[group.first + i] - tile.first;
      seen = sees > seen ? sees : seen;
    }
    const std::int64_t whole = (seen + row_block - 1) / row_block * row_block;
    group.rows = static_cast<int>(whole < tile.padded ? whole : tile.padded);
  }
  const bool can_mix = fits_mixed_block(at.d_c, at.d_r);
  const auto is = [&](int g, int partial_sums) {
    return g < work.num_groups && work.groups[g].partial_sums == partial_sums;
  };
  for (int g = 0; g < work.num_groups;) {
    const int eights = !is(g, 2) ? 0 : is(g + 1, 2) ? 2 : 1;
    const int fours = eights > 0 ? can_mix && is(g + eights, 4) : is(g + 1, 4) ? 2 : 1;
    if (eights + fours == work.num_groups)
      work.ahead.start(score_steps(at, tile, eights > 0 && fours > 0, fours), runs_of_scores);
    weigh(q, rows, at, tile, work.groups + g, eights, fours, work);
    g += eights + fours;
  }
}

/// The value blocks of a tile: 12 queries where there are enough, which takes the fewest loads, else a group.
struct ValuePlan {
  const Group* group;
  const Group* more;  // null, or half of another group
  int first_of_more;  // of its queries
};

/// Queries from `first` of the group on; `acc` floats lie between the state's first sums and the block's.
ValueQueries queries_of(const Group& group, int first, std::int64_t acc) {
  return {group.weights + 2 * first, 32 / group.partial_sums, group.shift.old + first,
          group.shift.added + first, group.acc + first * 32 + acc};
}

int plan_values(const Work& work, ValuePlan* plan) {
  int size = 0;
  const Group* const groups = work.groups;
  const auto joins = [&](int g, int queries) {  // the group before
    return g < work.num_groups && groups[g].rows == groups[g - 1].rows &&
           16 / groups[g].partial_sums == queries;
  };
  for (int g = 0; g < work.num_groups;) {
    const bool is_eight = groups[g].partial_sums == 2;
    if (is_eight && joins(g + 1, 8) && joins(g + 2, 8)) {
      plan[size++] = {groups + g, groups + g + 1, 0};
      plan[size++] = {groups + g + 2, groups + g + 1, 4};
      g += 3;
    } else if (is_eight && joins(g + 1, 4)) {
      plan[size++] = {groups + g, groups + g + 1, 0};
      g += 2;
    } else {
      plan[size++] = {groups + g++, nullptr, 0};
    }
  }
  return size;
}

/// A second round for a group whose weights have remainders.
void add_remainders(const Group& group, std::int64_t acc, ValueBlock& block) {
  float added[8];
  for (int q = 0; q < 8; ++q) added[q] = group.shift.added[q] / 256;
  block.queries = {group.remainders, 32 / group.partial_sums, nullptr, added, group.acc + acc};
  block.is_first = block.moves = false;
  value_blocks[group.queries - 1](block);
}

/// Blocks from which on quadruples of rows, made by the first, are kept for the others: storing them costs
/// about what making them twice does.
constexpr int least_blocks_to_keep = 3;

/// Adds half a chunk of features. One block fetches: of several that all walk the rows the last, since the
/// first wait for the same lines from L2. `block` is written field by field: a copy would wait for the fields
/// to be stored.
void add_half_chunk(Work& work, const ValuePlan* plan, int blocks, std::int64_t acc, ValueBlock& block) {
  int rows_of_quads = 0;
  block.is_first = *work.has_sums == 0;
  block.keeps_quads = blocks >= least_blocks_to_keep;
  const int fetches = block.keeps_quads ? 0 : blocks - 1;
  const auto place_rows_of = [&](const Group& group) {
    block.rows = group.rows;
    block.has_quads = group.rows <= rows_of_quads;
    if (block.keeps_quads && !block.has_quads) rows_of_quads = group.rows;
  };
  for (int i = 0; i < blocks; ++i) {
    const auto& [group, more, first_of_more] = plan[i];
    place_rows_of(*group);
    block.queries = queries_of(*group, 0, acc);
    block.moves = group->shift.moves || (more && more->shift.moves);
    block.fetch = i == fetches && work.ahead.fetch.rate > 0 ? &work.ahead.fetch : nullptr;
    if (more) block.more = queries_of(*more, first_of_more, acc);
    const std::int64_t joined = more ? more->queries - first_of_more : 0;
    (more ? joined_value_blocks[joined < 4 ? joined - 1 : 3] : value_blocks[group->queries - 1])(block);
  }
  block.fetch = nullptr;
  for (int g = 0; g < work.num_groups; ++g) {
    if (!work.groups[g].has_remainders) continue;
    place_rows_of(work.groups[g]);
    add_remainders(work.groups[g], acc, block);
  }
}

void add_values(const AttendRows& rows, const LatentRow& at, const Tile& tile, Work& work) {
  ValuePlan plan[max_groups];
  const int blocks = plan_values(work, plan);
  work.ahead.start(half_chunks(at.d_c) * (tile.padded / 8), TileLines::num_runs);
  ValueBlock block{};
  block.runs = tile.runs;
  block.row_stride = rows.row_stride;
  block.quads = work.quads;
  for (std::int64_t i = 0; i < half_chunks(at.d_c); ++i) {
    const std::int64_t f = i / 2 * chunk, left = at.d_c - f;
    block.offset = rows.value_offset + f;
    block.features = left >= chunk ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    block.half = static_cast<int>(i % 2);
    add_half_chunk(work, plan, blocks, i * work.acc_stride, block);
  }
  *work.has_sums = 1;
}

void attend(const AttendQueries& q, const AttendRows& rows, void* state) {
  const LatentRow at = latent_row(DType::i8, q.d_v, q.d_qk - q.d_v);
  Work work;
  list_groups(q, state, work);
  const std::byte* padded_runs[tile_rows / 4];
  for (std::int64_t row = 0; row < rows.count; row += tile_rows) {
    const int count = static_cast<int>(rows.count - row < tile_rows ? rows.count - row : tile_rows);
    Tile tile{row, rows.runs + row / 4, count, (count + row_block - 1) / row_block * row_block};
    if ((count + 3) / 4 * 4 < tile.padded) {  // an odd number of runs
      for (int i = 0; i < tile.padded / 4; ++i) padded_runs[i] = tile.runs[i < (count + 3) / 4 ? i : 0];
      tile.runs = padded_runs;
    }
    read_factors(tile, rows, at, work.factors);
    const bool has_next = row + 2 * tile_rows <= rows.count + rows.ahead;
    work.ahead.begin(has_next ? rows.runs + (row + tile_rows) / 4 : nullptr, rows.row_stride);
    weigh_all(q, rows, at, tile, work);
    add_values(rows, at, tile, work);
  }
}

void begin(const AttendQueries& q, void* state) {
  const State at = state_in(q, state);
  *at.has_sums = 0;
  for (std::int64_t g = 0; g < num_groups(q.kinds); ++g) {
    for (int i = 0; i < 16; ++i) {
      at.running[g].reference[i] = -__builtin_inff();
      at.running[g].sum[i] = 0;
    }
  }
}

/// A query's sums over a state: lanes [lane, lane + p) of group g, place `place`.
StateSums<LoadFeatures> query_sums(const State& at, std::int64_t g, std::int64_t lane, int p,
                                   std::int64_t place) {
  const float* sums = at.running[g].sum + lane;
  return {at.running[g].reference[lane],
          p == 2 ? sums[0] + sums[1] : (sums[0] + sums[1]) + (sums[2] + sums[3]),
          {at.acc + place * 32, at.stride}};
}

void fold(const AttendQueries& q, const void* first, const void* second, const AttendSums* into) {
  const State states[2] = {state_in(q, const_cast<void*>(first)),
                           state_in(q, const_cast<void*>(second ? second : first))};
  const std::int64_t count = q.kinds.count();
  for (std::int64_t i = 0, g = 0, place = 0; i < count; ++g) {
    const bool is_eight = i < q.kinds.eights;
    const std::int64_t size = is_eight ? 8 : 4, last = is_eight ? q.kinds.eights : count;
    const int p = is_eight ? 2 : 4;
    for (std::int64_t lane = 0; lane < 16 && i < last && lane < size * p; lane += p, ++i) {
      const auto more = query_sums(states[1], g, lane, p, place + lane / p);
      fold_states<4>(query_sums(states[0], g, lane, p, place + lane / p), second ? &more : nullptr, q.d_v,
                     into[i]);
    }
    place += size;
  }
}

std::int64_t packed_bytes(const QueryKinds& kinds, std::int64_t d_qk, std::int64_t d_v) {
  const std::int64_t rest = kinds.fours + kinds.twos + kinds.ones;
  return (kinds.eights + 7) / 8 * group_bytes<2>(d_v, d_qk - d_v) +
         (rest + 3) / 4 * group_bytes<4>(d_v, d_qk - d_v);
}

void pack(const float* const* rows, const QueryKinds& kinds, std::int64_t d_qk, std::int64_t d_v,
          void* packed) {
  const std::int64_t rest = kinds.fours + kinds.twos + kinds.ones, d_r = d_qk - d_v;
  std::byte* next = pack_groups<2>(rows, kinds.eights, d_v, d_r, static_cast<std::byte*>(packed));
  pack_groups<4>(rows + kinds.eights, rest, d_v, d_r, next);
}

std::int64_t state_bytes(const QueryKinds& kinds, std::int64_t d_v) {
  return line + num_groups(kinds) * static_cast<std::int64_t>(sizeof(Running)) +
         half_chunks(d_v) * num_places(kinds) * 32 * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace

const AttendKernel int8_attend{true, packed_bytes, pack, state_bytes, begin, attend, fold, join};

}  // namespace mla
