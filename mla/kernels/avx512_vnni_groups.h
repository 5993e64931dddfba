#pragma once
// Groups of queries, memory and state of avx512_vnni_attend.cpp, which alone includes this.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "mla/core/parts.h"
#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_pairs.h"
#include "mla/kernels/avx512_vnni_scores.h"
#include "mla/kernels/avx512_vnni_softmax.h"

namespace mla {
namespace {

constexpr int max_groups = AttendQueries::max_count / 4 + 1;

/// A group of queries: where it is in the call.
struct Group {
  int rows;  // of the present tile that it works on: those that a query sees, rounded up to row_block
  std::int64_t first;    // query
  std::int64_t queries;  // that exist, at most 16 / partial_sums
  int partial_sums;      // P
  const std::byte* packed;
  Running* running;
  float* acc;  // [half chunk][acc_stride], of which [16 / partial_sums][32] are its own
  std::uint32_t *weights, *remainders;
  bool has_remainders;
  Shift shift;
};

/// The next tile's lines, to be fetched while the present one is worked on, in their order.
class TileLines {
 public:
  static constexpr int num_runs = tile_rows / 4;

  /// The next tile is `runs`, or there is none if that is null.
  void begin(const std::byte* const* runs, std::int64_t row_stride) {
    runs_ = runs;
    lines_of_run_ = parts(4 * row_stride, 64);
    listed_ = 0;
    fetch = Fetch{nullptr};
  }

  /// Spreads the runs before `end` that were not fetched yet over the next `steps` steps.
  void start(std::int64_t steps, int end) {
    fetch = Fetch{nullptr};
    if (!runs_ || steps == 0 || end == listed_) return;
    Lines* to = list_;
    const std::int64_t lines = (end - listed_) * lines_of_run_;
    for (; listed_ < end; ++listed_) *to++ = {runs_[listed_], lines_of_run_};
    *to = {runs_[0], std::int64_t{1} << 62};
    fetch = {list_ + 1, list_[0], static_cast<int>(parts(lines, steps))};
  }

  Fetch fetch{nullptr};

 private:
  const std::byte* const* runs_ = nullptr;
  std::int64_t lines_of_run_ = 0;
  int listed_ = 0;
  Lines list_[num_runs + 1];
};

/// Memory of one call; lives on the stack.
struct Work {
  alignas(64) float scores[3][tile_rows / 2 * 16];  // of up to three groups
  __m512 scales[3];                                 // softmax scale times log2 e times step sizes
  alignas(64) std::uint32_t weights[2][(AttendQueries::max_count + 8) * tile_rows / 4];  // and remainders
  alignas(64) std::byte quads[tile_rows / 4 * 128];
  RowFactors factors;
  Group groups[max_groups];
  int num_groups = 0;
  std::int64_t acc_stride;
  std::int64_t* has_sums;
  TileLines ahead;
};

/// The state: a flag, what runs of each group, then their sums of values, [half chunk][place][32].
struct State {
  std::int64_t* has_sums;
  Running* running;
  float* acc;
  std::int64_t stride;  // of half chunks
};

std::int64_t num_groups(const QueryKinds& kinds) {
  return (kinds.eights + 7) / 8 + (kinds.fours + kinds.twos + kinds.ones + 3) / 4;
}

/// Queries, those that fill the groups up included.
std::int64_t num_places(const QueryKinds& kinds) {
  return (kinds.eights + 7) / 8 * 8 + (kinds.fours + kinds.twos + kinds.ones + 3) / 4 * 4;
}

State state_in(const AttendQueries& q, void* state) {
  auto* running = reinterpret_cast<Running*>(static_cast<std::byte*>(state) + line);
  return {static_cast<std::int64_t*>(state), running, reinterpret_cast<float*>(running + num_groups(q.kinds)),
          num_places(q.kinds) * 32};
}

void list_groups(const AttendQueries& q, void* state, Work& work) {
  const std::int64_t count = q.kinds.eights + q.kinds.fours + q.kinds.twos + q.kinds.ones;
  const State at = state_in(q, state);
  work.acc_stride = at.stride;
  work.has_sums = at.has_sums;
  const auto* packed = static_cast<const std::byte*>(q.packed);
  std::int64_t weights = 0, place = 0;
  for (std::int64_t first = 0; first < count;) {
    const bool is_eight = first < q.kinds.eights;
    const std::int64_t size = is_eight ? 8 : 4, left = (is_eight ? q.kinds.eights : count) - first;
    const std::int64_t queries = left < size ? left : size;
    work.groups[work.num_groups] = {0,
                                    first,
                                    queries,
                                    is_eight ? 2 : 4,
                                    packed,
                                    at.running + work.num_groups,
                                    at.acc + place * 32,
                                    work.weights[0] + weights,
                                    work.weights[1] + weights,
                                    false,
                                    {}};
    ++work.num_groups;
    packed += is_eight ? group_bytes<2>(q.d_v, q.d_qk - q.d_v) : group_bytes<4>(q.d_v, q.d_qk - q.d_v);
    weights += size * tile_rows / 4;
    place += size;
    first += queries;
  }
}

/// Part of the call's rows: `count` of them, filled up to a multiple of row_block with rows that nobody sees.
struct Tile {
  std::int64_t first;
  const std::byte* const* runs;  // [padded / 4]
  int count, padded;
};

}  // namespace
}  // namespace mla
