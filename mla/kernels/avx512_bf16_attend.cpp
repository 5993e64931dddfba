// Attention over bf16 rows with products of bf16 pairs: AVX-512 with BF16. Compiled with -mavx512bf16; see
// attend.h.
//
// Up to 128 query rows against up to 512 cached rows a call, in tiles of 256 rows that stay in L2. For each
// tile: scores of one or two groups of queries, their softmax while the scores are in L1, then the sum of
// values, up to 12 queries x 32 features at a time. Nothing is packed but the queries; cached rows are read
// where they lie, and the next tile's are fetched meanwhile.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "mla/core/parts.h"
#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_fetch.h"
#include "mla/kernels/avx512_bf16_groups.h"
#include "mla/kernels/avx512_bf16_pairs.h"
#include "mla/kernels/avx512_bf16_scores.h"
#include "mla/kernels/avx512_bf16_softmax.h"
#include "mla/kernels/avx512_bf16_values.h"
#include "mla/kernels/avx512_fold.h"

namespace mla {
namespace {

constexpr int tile_runs = tile_rows / AttendRows::run;
constexpr float log2_e = 1.44269504f;
constexpr float ln_2 = 0.693147180559945f;

// ---------------------------------------------------------------- a tile

struct Tile {
  std::int64_t first;             // row of the call
  std::int64_t count;             // rows
  const std::byte* const* runs;   // filled up to a multiple of 16 rows with others that nobody sees
  const std::byte* const* ahead;  // runs of the next tile, if that is whole, or null
};

/// The most rows of the tile that queries [first, first + count) see.
std::int64_t rows_seen(const AttendRows& rows, const Tile& tile, std::int64_t first, std::int64_t count) {
  std::int64_t most = 0;
  for (std::int64_t i = first; i < first + count; ++i) most = rows.visible[i] > most ? rows.visible[i] : most;
  most -= tile.first;
  return most < 0 ? 0 : most < tile.count ? most : tile.count;
}

/// Scores -inf where a query of the group does not see one of the tile's first `count` rows.
template <int P>
void hide(const AttendRows& rows, const Group& group, const Tile& tile, std::int64_t count, float* scores) {
  for (std::int64_t q = 0; q < Lanes<P>::queries; ++q) {
    std::int64_t seen = q < group.queries ? rows.visible[group.first + q] - tile.first : 0;
    seen = seen < 0 ? 0 : seen;
    for (std::int64_t r = seen; r < count; ++r) scores[r / P * 16 + P * q + r % P] = -__builtin_inff();
  }
}

/// Weights of a group whose scores are there.
template <int P>
void weigh_group(const AttendQueries& q, const AttendRows& rows, const Tile& tile, const Group& group,
                 Set& set, float* scores, Work& work) {
  bool all_see = group.queries == Lanes<P>::queries;
  for (std::int64_t i = group.first; i < group.first + group.queries; ++i)
    all_see = all_see && rows.visible[i] - tile.first >= set.rows;
  if (!all_see) hide<P>(rows, group, tile, set.rows, scores);
  __m512 shift = _mm512_set1_ps(1.0f), top;
  set.grew |= softmax_tile<P>(scores, set.rows, q.scale * log2_e, *group.running,
                              set.weights + group.first - set.first, set.stride, shift, top);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, shift);
  for (std::int64_t i = 0; i < group.queries; ++i) work.shift[group.first + i] = lanes[P * i];
  if (rows.largest == nullptr) return;
  _mm512_store_ps(lanes, top);
  for (std::int64_t i = 0; i < group.queries; ++i) {
    float& largest = rows.largest[group.first + i];
    largest = lanes[P * i] * ln_2 > largest ? lanes[P * i] * ln_2 : largest;
  }
}

constexpr std::int64_t group_stride = tile_rows / 2 * 16;

/// Scores and weights of one group, or of two of one kind.
template <int P, int G>
void weigh(const AttendQueries& q, const AttendRows& rows, const Tile& tile, const Group* group, Set& set,
           const ScoreRows& score_rows, Fetch& fetch, Work& work) {
  score_tile<P, G>(group->packed, score_rows, set.rows, work.scores[0], group_stride, fetch);
  for (int g = 0; g < G; ++g) weigh_group<P>(q, rows, tile, group[g], set, work.scores[g], work);
}

/// The same of one or two groups of eight and a group of four.
template <int G>
void weigh_mixed(const AttendQueries& q, const AttendRows& rows, const Tile& tile, const Group* group,
                 Set& set, const ScoreRows& score_rows, Fetch& fetch, Work& work) {
  score_mixed_tile<G>(group->packed, score_rows, set.rows, work.scores[0], group_stride, fetch);
  for (int g = 0; g < G; ++g) weigh_group<2>(q, rows, tile, group[g], set, work.scores[g], work);
  weigh_group<4>(q, rows, tile, group[G], set, work.scores[G], work);
}

/// Groups whose scores are taken together: one, two of one kind, or one or two of eight and one of four.
struct Round {
  int groups;
  bool is_mixed;
};

/// Rows of its blocks.
std::int64_t rows_of_round(const Round& round) {
  if (round.is_mixed) return round.groups == 3 ? 8 : 12;
  return round.groups == 2 ? 12 : 24;
}

/// The round of a set that begins with group g.
Round round_at(const AttendQueries& q, const Set& set, int g, const Work& work) {
  const auto kind = [&](int i) {
    return g + i < set.first_group + set.num_groups ? work.groups[g + i].partial_sums : 0;
  };
  if (q.d_qk % 8 == 0 && kind(0) == 2) {
    if (kind(1) == 4 && kind(2) != 4) return {2, true};
    if (kind(1) == 2 && kind(2) == 4 && kind(3) != 4) return {3, true};
  }
  return {kind(0) <= 4 && kind(1) == kind(0) ? 2 : 1, false};
}

/// Weights of all groups of a set; the first round fetches.
void weigh_set(const AttendQueries& q, const AttendRows& rows, const Tile& tile, Set& set, Fetch& fetch,
               Work& work) {
  const ScoreRows score_rows{tile.runs, rows.row_stride, rows.key_offset, q.d_qk, &work.expander};
  Round round;
  for (int g = set.first_group; g < set.first_group + set.num_groups; g += round.groups, fetch.rate = 0) {
    round = round_at(q, set, g, work);
    const auto run = [&](auto function) {
      function(q, rows, tile, work.groups + g, set, score_rows, fetch, work);
    };
    const int kind = work.groups[g].partial_sums;
    if (round.is_mixed) {
      round.groups == 2 ? run(weigh_mixed<1>) : run(weigh_mixed<2>);
    } else if (kind == 2) {
      round.groups == 2 ? run(weigh<2, 2>) : run(weigh<2, 1>);
    } else if (kind == 4) {
      round.groups == 2 ? run(weigh<4, 2>) : run(weigh<4, 1>);
    } else {
      kind == 8 ? run(weigh<8, 1>) : run(weigh<16, 1>);
    }
    work.expander.make_up_to(tile.count);  // those that this set does not see
  }
}

/// Where 32 features of the values of a tile's rows are.
struct Features {
  const std::byte* const* runs;
  std::int64_t stride, offset;  // bytes
};

/// The last features of rows whose values 32 does not divide, with zeros behind them.
struct LastFeatures {
  alignas(64) bf16 values[tile_rows][32];
  const std::byte* runs[tile_runs];

  Features copy(const AttendRows& rows, const Tile& tile, std::int64_t offset, std::int64_t count) {
    std::memset(values, 0, sizeof values);
    for (std::int64_t r = 0; r < (tile.count + 15) / 16 * 16; ++r) {
      const std::byte* row = tile.runs[r / AttendRows::run] + r % AttendRows::run * rows.row_stride;
      std::memcpy(values[r], row + offset, static_cast<std::size_t>(count) * sizeof(bf16));
    }
    for (int i = 0; i < tile_runs; ++i)
      runs[i] = reinterpret_cast<const std::byte*>(values[i * AttendRows::run]);
    return {runs, sizeof values[0], 0};
  }
};

/// Chunks of 32 features that a set takes at a time, of `left`.
int chunks_at_once(const Set& set, std::int64_t left) {
  return set.queries <= wide_values && left >= 64 ? 2 : 1;
}

/// Where a set's sums of some features are, and what they are made of.
struct SetValues {
  Features features;
  int chunks;  // of 32 features
  const float* shift;
  float* acc;  // of query 0
  std::int64_t chunk_stride;
  bool is_first;
};

/// Adds some features of the values for the queries of a set. Its last block fetches: the first ones wait for
/// the same lines from L2.
void add_set_values(const Set& set, const SetValues& v, Fetch& fetch) {
  Fetch nothing{fetch.list};
  for (std::int64_t i = 0; i < set.queries; i += set.together) {
    const bool is_last = i + set.together >= set.queries;
    add_values({v.features.runs, v.features.stride, set.rows / AttendRows::run, v.features.offset,
                set.weights + i, set.stride, v.shift ? v.shift + set.first + i : nullptr,
                v.acc + (set.first + i) * 32, v.chunk_stride, v.is_first},
               is_last ? set.queries - i : set.together, v.chunks, is_last ? fetch : nothing);
  }
}

/// Adds the tile's values; the first set fetches. A lone set of few queries takes two chunks at a time.
void add_all_values(const AttendQueries& q, const AttendRows& rows, const Tile& tile, Fetch fetch,
                    bool is_first, float* acc, const Work& work) {
  const std::int64_t chunk_stride = q.kinds.count() * 32;
  LastFeatures last;
  Fetch nothing{fetch.list};
  for (std::int64_t feature = 0, chunks; feature < q.d_v;
       feature += chunks * 32, acc += chunks * chunk_stride) {
    const std::int64_t left = q.d_v - feature;
    const std::int64_t offset = rows.value_offset + feature * static_cast<std::int64_t>(sizeof(bf16));
    const Features features =
        left >= 32 ? Features{tile.runs, rows.row_stride, offset} : last.copy(rows, tile, offset, left);
    chunks = work.num_sets == 1 ? chunks_at_once(work.sets[0], left) : 1;
    for (int s = 0; s < work.num_sets; ++s) {
      const Set& set = work.sets[s];
      if (set.rows > 0)
        add_set_values(set,
                       {features, static_cast<int>(chunks), set.grew && !is_first ? work.shift : nullptr, acc,
                        chunk_stride, is_first},
                       s == 0 ? fetch : nothing);
    }
  }
}

/// Steps of the tile's first scores that fetch; where rows are made between them, only each few do
/// (make_next).
std::int64_t score_steps(const AttendQueries& q, const AttendRows& rows, const Tile& tile, const Work& work) {
  const Round round = round_at(q, work.sets[0], 0, work);
  const std::int64_t features = round.is_mixed ? 8 : 2 * work.groups[0].partial_sums;
  const std::int64_t steps = tile.count / rows_of_round(round) * (q.d_qk / features);
  return rows.unmade && round.groups > 1 ? steps / (round.is_mixed ? 2 : 3) : steps;
}

/// Steps of the first set's values that fetch.
std::int64_t value_steps(const AttendQueries& q, const Work& work) {
  const int chunks = work.num_sets == 1 ? chunks_at_once(work.sets[0], q.d_v) : 1;
  return parts(q.d_v, 32 * chunks) * (work.sets[0].rows / AttendRows::run);
}

void attend_tile(const AttendQueries& q, const AttendRows& rows, Tile tile, const State& state, Work& work) {
  const std::byte* padded[tile_runs];
  if (rows.unmade) {
    void* first = const_cast<std::byte*>(tile.runs[0]);
    work.expander = Expander(rows.unmade, static_cast<bf16*>(first), rows.row_stride / size_of(DType::bf16));
  }
  const std::int64_t num_runs = (tile.count + AttendRows::run - 1) / AttendRows::run;
  if (num_runs % 4 != 0) {
    for (std::int64_t i = 0; i < (num_runs + 3) / 4 * 4; ++i)
      padded[i] = tile.runs[i < num_runs ? i : num_runs - 1];
    tile.runs = padded;
  }
  TileLines lines;
  const std::int64_t steps = score_steps(q, rows, tile, work);
  Fetch fetch =
      rows.lines_ahead ? part_of(rows, 0, 5, steps) : lines.late(q, rows, tile.runs, num_runs, steps);
  for (int s = 0; s < work.num_sets; ++s, fetch.rate = 0) {
    Set& set = work.sets[s];
    const std::int64_t seen = rows_seen(rows, tile, set.first, set.queries);
    set.rows = (seen + set.row_step - 1) / set.row_step * set.row_step;
    set.grew = false;
    if (set.rows > 0) weigh_set(q, rows, tile, set, fetch, work);
  }
  fetch = rows.lines_ahead ? part_of(rows, 5, 9, value_steps(q, work))
                           : lines.early(q, rows, tile.ahead ? tile.ahead : tile.runs,
                                         tile.ahead ? tile_runs : 1, value_steps(q, work));
  add_all_values(q, rows, tile, fetch, !*state.has_sums, state.acc, work);
  *state.has_sums = 1;
}

// ---------------------------------------------------------------- the kernel

std::int64_t state_bytes(const QueryKinds& kinds, std::int64_t d_v) {
  return 64 + num_groups(kinds) * static_cast<std::int64_t>(sizeof(Running)) +
         (d_v + 31) / 32 * 32 * kinds.count() * static_cast<std::int64_t>(sizeof(float));
}

void begin(const AttendQueries& q, void* memory) {
  const State state(q.kinds, memory);
  *state.has_sums = 0;
  for (std::int64_t g = 0; g < num_groups(q.kinds); ++g)
    state.running[g] = {_mm512_set1_ps(-__builtin_inff()), _mm512_setzero_ps()};
}

void attend(const AttendQueries& q, const AttendRows& rows, void* memory) {
  const State state(q.kinds, memory);
  Work work;
  list_groups(q, state.running, work);
  list_sets(q.kinds.count(), work);
  for (std::int64_t first = 0; first < rows.count; first += tile_rows) {
    const std::int64_t left = rows.count - first;
    const std::byte* const* runs = rows.runs + first / AttendRows::run;
    attend_tile(q, rows,
                {first, left < tile_rows ? left : tile_rows, runs,
                 left + rows.ahead >= 2 * tile_rows ? runs + tile_runs : nullptr},
                state, work);
  }
}

void fold(const AttendQueries& q, const void* first, const void* second, const AttendSums* into) {
  const State states[2] = {State(q.kinds, const_cast<void*>(first)),
                           State(q.kinds, const_cast<void*>(second ? second : first))};
  const std::int64_t stride = q.kinds.count() * 32;
  std::int64_t query = 0, group = 0;
  for_each_kind(q.kinds, [&](auto lanes, std::int64_t of_kind) {
    constexpr int size = decltype(lanes)::queries, partial_sums = 16 / size;
    for (std::int64_t i = 0; i < of_kind; ++i, ++query) {
      const auto sums_of = [&](const State& state) {
        return query_sums(state.running[group + i / size], i % size * partial_sums, partial_sums,
                          {state.acc + query * 32, stride});
      };
      const auto more = sums_of(states[1]);
      fold_states<2>(sums_of(states[0]), second ? &more : nullptr, q.d_v, into[query]);
    }
    group += groups_of(of_kind, size);
  });
}

}  // namespace

const AttendKernel bf16_pair_attend{true, packed_bytes, pack, state_bytes, begin, attend, fold, join};

}  // namespace mla
