#pragma once
// What the parts of attend_math.h share: how a tile's scores lie, and which rows it has.
#include "mla/kernels/attend.h"

namespace mla {
namespace {

constexpr std::int64_t tile_rows = f32_tile_rows(W);
constexpr std::int64_t tile_runs = tile_rows / AttendRows::run;
constexpr float lowest = -3.402823466e38f;  // stands for a maximum before the first row

/// How the scores of a run of four rows lie for groups with P partial sums: `vectors` vectors, row j of query
/// q at row_place(j) + query_place(q). With P above 4 the lanes between repeat them.
template <int P>
struct Placing {
  static constexpr int queries = static_cast<int>(W) / P;
  static constexpr int vectors = P >= 4 ? 1 : 4 / P;
  static constexpr std::int64_t row_place(int j) {
    return P == 1 ? j * W : P == 2 ? j / 2 * W + j % 2 * 2 : j;
  }
  static constexpr int query_place(int q) { return P == 1 ? q : P == 2 ? q / 2 * 4 + q % 2 : q * P; }
  static constexpr int query_at(int lane) {
    return P == 1 ? lane : P == 2 ? lane / 4 * 2 + lane % 2 : lane / P;
  }
  static constexpr int row_at(int vector, int lane) {
    return P == 1 ? vector : P == 2 ? 2 * vector + lane / 2 % 2 : lane % 4;
  }
};

constexpr int most_groups = W == 16 ? 2 : 3;  // that one block of scores takes

/// The cache lines of the next tile's rows, to be fetched one by one while this tile is worked on: in the
/// order of memory, for as long as the rows leave no gaps.
class Ahead {
 public:
  Ahead(const AttendQueries& q, const AttendRows& rows, std::int64_t next)
      : run_(rows.runs + next / AttendRows::run), row_stride_(rows.row_stride) {
    const std::int64_t left = rows.count + rows.ahead - next;
    end_ = run_ + (left < tile_rows ? left : tile_rows) / AttendRows::run;
    constexpr std::int64_t element = sizeof(float);
    const std::int64_t key_end = rows.key_offset + q.d_qk * element,
                       value_end = rows.value_offset + q.d_v * element;
    begin_ = rows.key_offset < rows.value_offset ? rows.key_offset : rows.value_offset;
    bytes_ = (key_end > value_end ? key_end : value_end) - begin_;
    if (bytes_ + 64 > row_stride_) {
      bytes_ += (AttendRows::run - 1) * row_stride_;
      row_ = last_row_ = AttendRows::run - 1;  // a run is one piece
    }
  }
  void fetch() {
    if (line_ >= line_end_ && !next_piece()) return;
    __builtin_prefetch(line_, 0, 2);
    line_ += 64;
  }

 private:
  __attribute__((always_inline)) bool next_piece() {  // a call would cost the loops their registers
    if (run_ >= end_) return false;
    line_ = *run_ + begin_ + (row_ - last_row_) * row_stride_;
    line_end_ = line_ + bytes_;
    if (++row_ == AttendRows::run) {
      row_ = last_row_;
      ++run_;
    }
    return true;
  }

  const std::byte *line_ = nullptr, *line_end_ = nullptr;  // of the piece in hand
  const std::byte* const* run_;
  const std::byte* const* end_;
  std::int64_t row_stride_, begin_, bytes_;  // bytes_: of a piece
  std::int64_t row_ = 0, last_row_ = 0;      // pieces begin at row row_ - last_row_ of a run
};

/// What a block of groups works with, tile after tile.
struct Tile {
  const AttendQueries& q;
  const AttendRows& rows;
  std::int64_t first;  // row of `rows`
  std::int64_t count;
  Ahead* ahead;  // null when another block of groups fetches
  const std::byte* const* runs() const { return rows.runs + first / AttendRows::run; }
  std::int64_t seen(std::int64_t query) const {
    const std::int64_t n = rows.visible[query] - first;
    return n < 0 ? 0 : n < count ? n : count;
  }
};

}  // namespace
}  // namespace mla
