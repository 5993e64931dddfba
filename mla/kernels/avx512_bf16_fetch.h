#pragma once
// What avx512_bf16_attend.cpp, which alone includes this, fetches while it computes.
#include <cstddef>
#include <cstdint>

#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_bf16_pairs.h"

namespace mla {
namespace {

constexpr int tile_rows = 256;  // that scores and values are taken of in turn: they stay in L2

/// The lines of a tile's rows: of keys, and of values where they lie elsewhere. The sums of a tile's values
/// fetch the first runs of the next one, its own scores the others.
class TileLines {
 public:
  TileLines() {}  // leaves the list as it is

  /// Those of `runs` that their own scores fetch, in `steps` steps, and those that the tile before fetches.
  Fetch late(const AttendQueries& q, const AttendRows& rows, const std::byte* const* runs,
             std::int64_t num_runs, std::int64_t steps) {
    list(q, rows, runs, num_runs);
    return fetch(early_, count_, steps);
  }
  Fetch early(const AttendQueries& q, const AttendRows& rows, const std::byte* const* runs,
              std::int64_t num_runs, std::int64_t steps) {
    list(q, rows, runs, num_runs);
    return fetch(0, early_, steps);
  }

 private:
  void list(const AttendQueries& q, const AttendRows& rows, const std::byte* const* runs,
            std::int64_t num_runs) {
    count_ = early_ = 0;
    constexpr std::int64_t element = sizeof(bf16);
    const std::int64_t key_end = rows.key_offset + q.d_qk * element,
                       value_end = rows.value_offset + q.d_v * element;
    const bool inside = rows.value_offset >= rows.key_offset && value_end <= key_end;
    const std::int64_t key = lines_of(q.d_qk * element), value = inside ? 0 : lines_of(q.d_v * element);
    const bool gapless = (key + value) * 64 >= rows.row_stride;
    early_runs_ = num_runs * 4 / 9;
    for (std::int64_t i = 0; i < num_runs; ++i) {
      if (i == early_runs_) early_ = count_;
      if (gapless) {
        add(runs[i], lines_of(AttendRows::run * rows.row_stride));
        continue;
      }
      for (int r = 0; r < AttendRows::run; ++r) {
        const std::byte* row = runs[i] + r * rows.row_stride;
        add(row + rows.key_offset, key);
        if (value > 0) add(row + rows.value_offset, value);
      }
    }
    list_[count_] = {runs[0], std::int64_t{1} << 62};
  }

  static std::int64_t lines_of(std::int64_t bytes) { return (bytes + 63) / 64; }

  void add(const std::byte* first, std::int64_t lines) { list_[count_++] = {first, lines}; }
  Fetch fetch(std::int64_t first, std::int64_t last, std::int64_t steps) {
    std::int64_t lines = 0;
    for (std::int64_t i = first; i < last; ++i) lines += list_[i].count;
    if (lines == 0 || steps == 0) return {list_ + count_};
    list_[last] = list_[count_];
    return {list_ + first + 1, list_[first], static_cast<int>((lines + steps - 1) / steps)};
  }

  Lines list_[2 * tile_rows + 1];
  std::int64_t count_ = 0, early_ = 0, early_runs_ = 0;
};

/// Ninths [first, last) of the further lines to be fetched, in `steps` steps.
Fetch part_of(const AttendRows& rows, std::int64_t first, std::int64_t last, std::int64_t steps) {
  std::int64_t skip = rows.num_lines_ahead * first / 9;
  const std::int64_t lines = rows.num_lines_ahead * last / 9 - skip;
  const Lines* at = rows.lines_ahead;
  for (; at->count <= skip; ++at) skip -= at->count;
  return {at + 1,
          {at->first + skip * 64, at->count - skip},
          steps > 0 ? static_cast<int>((lines + steps - 1) / steps) : 0};
}

}  // namespace
}  // namespace mla
