#pragma once
// Attention over f32 rows for the vector instruction sets (attend.h), written once over their `Lanes` and to
// be included behind leaf_math.h, which defines F and W: everything here is in the anonymous namespace of the
// file that includes it.
//
// Queries that are summed in groups of g fill a vector: lanes are g queries x P = W / g partial sums, and P
// features of a row come in by one broadcast. A tile of rows becomes scores, these become weights of the
// softmax, and the weights, broadcast one by one, sum up the values, whose features are then the lanes.
#include "mla/kernels/attend_scores.h"
#include "mla/kernels/attend_values.h"

namespace mla {
namespace {

/// Where things lie in `packed` and in the state.
struct Cursor {
  std::int64_t query = 0;  // first of the group
  const float* packed;     // its queries
  GroupState* state;
  float* acc;  // of query 0
};

std::int64_t groups_of(const QueryKinds& k) {
  return (k.eights + 7) / 8 + (k.fours + 3) / 4 + (k.twos + 1) / 2 + k.ones;
}

template <int P>
constexpr std::int64_t group_size(std::int64_t d_qk) {
  return (d_qk + P - 1) / P * W;
}

/// Attends G groups of the kind to a tile.
template <int P, int G>
void attend_groups(const Tile& t, const Cursor& at, std::int64_t queries) {
  constexpr std::int64_t g_queries = W / P;
  alignas(64) float scores[G * tile_runs * Placing<P>::vectors * W];
  alignas(64) float shift[G * W];
  score_rows<P, G>(t, at.packed, group_size<P>(t.q.d_qk), scores);
  for (int g = 0; g < G; ++g) {
    const std::int64_t left = queries - g * g_queries, some = left < g_queries ? left : g_queries;
    const std::int64_t query = at.query + g * g_queries;
    softmax<P>(t, query, some, scores + g * tile_runs * Placing<P>::vectors * W, at.state[g], shift + g * W);
  }
  const std::int64_t some = queries < G * g_queries ? queries : G * g_queries;
  bool all_seen = true;
  for (std::int64_t i = 0; i < some; ++i) all_seen &= t.seen(at.query + i) == t.count;
  value_groups<P>({t, at.query, some, scores, shift, at.acc + at.query * t.q.d_v, all_seen});
}

/// Attends `queries` queries of one kind to a tile, and moves on behind them. The first block fetches.
template <int P>
void attend_kind(Tile t, Cursor& at, std::int64_t queries) {
  constexpr std::int64_t g_queries = W / P;
  while (queries > 0) {
    if (at.query > 0) t.ahead = nullptr;
    const std::int64_t groups = (queries + g_queries - 1) / g_queries,
                       some = groups < most_groups ? groups : most_groups;
    if (some == 1)
      attend_groups<P, 1>(t, at, queries);
    else if (some == 2)
      attend_groups<P, 2>(t, at, queries);
    else if constexpr (most_groups == 3)
      attend_groups<P, 3>(t, at, queries);
    const std::int64_t done = some * g_queries < queries ? some * g_queries : queries;
    at.query += done;
    at.packed += some * group_size<P>(t.q.d_qk);
    at.state += some;
    queries -= done;
  }
}

Cursor start(const AttendQueries& q, const void* state) {
  auto* groups = static_cast<GroupState*>(const_cast<void*>(state));
  return {0, static_cast<const float*>(q.packed), groups,
          reinterpret_cast<float*>(groups + groups_of(q.kinds))};
}

void vector_attend(const AttendQueries& q, const AttendRows& rows, void* state) {
  for (std::int64_t first = 0; first < rows.count; first += tile_rows) {
    const std::int64_t count = rows.count - first < tile_rows ? rows.count - first : tile_rows;
    Ahead ahead(q, rows, first + count);
    // With 256 bits the loops have no room for fetching: it cost more than it brought.
    const Tile t{q, rows, first, count, W == 8 ? nullptr : &ahead};
    Cursor at = start(q, state);
    attend_kind<W / 8>(t, at, q.kinds.eights);
    attend_kind<W / 4>(t, at, q.kinds.fours);
    attend_kind<W / 2>(t, at, q.kinds.twos);
    attend_kind<W>(t, at, q.kinds.ones);
  }
}

template <int P>
float* pack_kind(const float* const* rows, std::int64_t queries, std::int64_t d_qk, float* packed) {
  constexpr std::int64_t g_queries = W / P;
  for (std::int64_t first = 0; first < queries; first += g_queries, packed += group_size<P>(d_qk)) {
    for (std::int64_t i = 0; i < group_size<P>(d_qk); ++i) {
      const std::int64_t q = first + i % W / P, d = i / W * P + i % P;
      packed[i] = q < queries && d < d_qk ? rows[q][d] : 0.0f;
    }
  }
  return packed;
}

void vector_pack(const float* const* rows, const QueryKinds& k, std::int64_t d_qk, std::int64_t,
                 void* packed) {
  float* at = pack_kind<W / 8>(rows, k.eights, d_qk, static_cast<float*>(packed));
  at = pack_kind<W / 4>(rows += k.eights, k.fours, d_qk, at);
  at = pack_kind<W / 2>(rows += k.fours, k.twos, d_qk, at);
  pack_kind<W>(rows + k.twos, k.ones, d_qk, at);
}

std::int64_t vector_packed_bytes(const QueryKinds& k, std::int64_t d_qk, std::int64_t) {
  const std::int64_t size = (k.eights + 7) / 8 * group_size<W / 8>(d_qk) +
                            (k.fours + 3) / 4 * group_size<W / 4>(d_qk) +
                            (k.twos + 1) / 2 * group_size<W / 2>(d_qk) + k.ones * group_size<W>(d_qk);
  return size * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t vector_state_bytes(const QueryKinds& kinds, std::int64_t d_v) {
  return groups_of(kinds) * static_cast<std::int64_t>(sizeof(GroupState)) +
         kinds.count() * d_v * static_cast<std::int64_t>(sizeof(float));
}

void vector_begin(const AttendQueries& q, void* state) {
  const Cursor at = start(q, state);
  for (std::int64_t i = 0; i < groups_of(q.kinds); ++i) {
    for (int lane = 0; lane < W; ++lane) {
      at.state[i].max[lane] = lowest;
      at.state[i].sum[lane] = 0.0f;
    }
  }
  for (std::int64_t i = 0; i < q.kinds.count() * q.d_v; ++i) at.acc[i] = 0.0f;
}

/// Adds the sums of a kind's queries to into[query].
template <int P>
void fold_kind(const AttendQueries& q, Cursor& at, std::int64_t queries, const AttendSums* into) {
  using Place = Placing<P>;
  for (std::int64_t i = 0; i < queries; ++i) {
    const std::int64_t query = at.query + i;
    GroupState& state = at.state[i / Place::queries];
    const int lane = Place::query_place(static_cast<int>(i % Place::queries));
    float sum = state.sum[lane];
    if constexpr (P == 2) sum += state.sum[lane + 2];
    if constexpr (P >= 4) sum = (sum + state.sum[lane + 1]) + (state.sum[lane + 2] + state.sum[lane + 3]);
    join_sums({state.max + lane, &sum, at.acc + query * q.d_v}, q.d_v, into[query]);
  }
  at.state += (queries + Place::queries - 1) / Place::queries;
  at.query += queries;
}

void vector_fold(const AttendQueries& q, const void* first, const void* second, const AttendSums* into) {
  for (const void* state : {first, second}) {
    if (!state) continue;
    Cursor at = start(q, state);
    fold_kind<W / 8>(q, at, q.kinds.eights, into);
    fold_kind<W / 4>(q, at, q.kinds.fours, into);
    fold_kind<W / 2>(q, at, q.kinds.twos, into);
    fold_kind<W>(q, at, q.kinds.ones, into);
  }
}

constexpr AttendKernel vector_f32_attend = {
    false,        vector_packed_bytes, vector_pack, vector_state_bytes,
    vector_begin, vector_attend,       vector_fold, join_sums};

}  // namespace
}  // namespace mla
