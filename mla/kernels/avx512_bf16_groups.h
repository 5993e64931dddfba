#pragma once
// Groups and sets of queries, memory and state of avx512_bf16_attend.cpp, which alone includes this.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "mla/core/parts.h"
#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_fetch.h"
#include "mla/kernels/avx512_bf16_scores.h"
#include "mla/kernels/avx512_bf16_softmax.h"
#include "mla/kernels/avx512_bf16_values.h"
#include "mla/kernels/avx512_fp8_expand.h"

namespace mla {
namespace {

constexpr std::int64_t max_queries = AttendQueries::max_count;
constexpr int max_groups = max_queries + 3;

/// Queries whose scores share registers.
struct Group {
  int partial_sums;      // P
  std::int64_t first;    // query
  std::int64_t queries;  // that exist, at most 16 / P
  const bf16* packed;
  Running* running;
};

/// Neighbouring groups whose weights lie side by side, so that up to 12 queries at a time can sum values.
struct Set {
  int first_group, num_groups;
  std::int64_t first, queries;
  std::int64_t row_step;   // rows are taken in multiples of this
  std::int64_t rows;       // of the present tile that it works on: those that a query sees, rounded up
  std::int64_t stride;     // of the weights
  std::uint32_t* weights;  // [rows / 2][stride]
  std::int64_t together;   // queries whose values are summed at a time
  bool grew;               // whether the present tile moved a reference
};

/// Memory of one call; lives on the stack.
struct Work {
  alignas(64) float scores[3][tile_rows / 2 * 16];  // of groups that are scored together
  alignas(64) std::uint32_t weights[(max_queries + 72) * tile_rows / 2 + 16];  // [set][pair][query]
  alignas(64) float shift[max_queries + 16];
  Group groups[max_groups];
  Set sets[max_queries / 16 + 1];
  int num_groups = 0, num_sets = 0;
  Expander expander;  // of the present tile
};

std::int64_t num_groups(const QueryKinds& kinds) {
  return groups_of(kinds.eights, 8) + groups_of(kinds.fours, 4) + groups_of(kinds.twos, 2) + kinds.ones;
}

/// The running sums: a flag, then a Running of each group, then acc [ceil(d_v / 32)][queries][32].
struct State {
  std::int64_t* has_sums;
  Running* running;
  float* acc;

  State(const QueryKinds& kinds, void* memory) {
    std::byte* at = static_cast<std::byte*>(memory);
    has_sums = reinterpret_cast<std::int64_t*>(at);
    running = reinterpret_cast<Running*>(at + 64);
    acc = reinterpret_cast<float*>(at + 64 + num_groups(kinds) * static_cast<std::int64_t>(sizeof(Running)));
  }
};

void list_groups(const AttendQueries& q, Running* running, Work& work) {
  const bf16* packed = static_cast<const bf16*>(q.packed);
  std::int64_t first = 0;
  for_each_kind(q.kinds, [&](auto lanes, std::int64_t queries) {
    constexpr int size = decltype(lanes)::queries;
    for (std::int64_t done = 0; done < queries; done += size) {
      const std::int64_t left = queries - done;
      work.groups[work.num_groups++] = {16 / size, first, left < size ? left : size, packed, running++};
      packed += lanes.packed(q.d_qk);
      first += left < size ? left : size;
    }
  });
}

/// Sets of 16 queries or a little more, the last of up to 24.
void list_sets(std::int64_t queries, Work& work) {
  std::uint32_t* weights = work.weights;
  Set* set = nullptr;
  for (int g = 0; g < work.num_groups; ++g) {
    const Group& group = work.groups[g];
    if (!set || (set->queries >= 16 && queries - group.first > 8)) {
      if (set) weights += tile_rows / 2 * set->stride;
      set = &work.sets[work.num_sets++];
      *set = {g, 0, group.first, 0, AttendRows::run, 0, 0, weights, 0, false};
    }
    const std::int64_t end = group.first - set->first + 16 / group.partial_sums;
    set->stride = end > set->stride ? end : set->stride;
    if (group.partial_sums >= 8) set->row_step = 16;
    set->queries += group.queries;
    ++set->num_groups;
  }
  for (int s = 0; s < work.num_sets; ++s) {
    Set& each = work.sets[s];
    each.together = parts(each.queries, parts(each.queries, most_values));
  }
}

}  // namespace
}  // namespace mla
