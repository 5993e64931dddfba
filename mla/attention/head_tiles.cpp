#include "mla/attention/head_tiles.h"

#include <algorithm>

#include "mla/core/error.h"

namespace mla {

void check_shape(const char* where, const AttentionShape& s, const RowShape& rows) {
  check_shape(where, s);
  require(
      rows.value_offset == 0 ? s.d_v <= s.d_qk : rows.value_offset >= s.d_qk,
      "{}: found d_qk {}, d_v {}, values {} floats behind keys, expected them behind the key, or as a part "
      "of it",
      where, s.d_qk, s.d_v, rows.value_offset);
}

void check_sequence(const char* where, const AttentionShape& s, const RowShape& rows, std::int64_t tokens,
                    std::int64_t length) {
  require(length >= 0 && tokens >= 0, "{}: found {} tokens over {} rows, expected no negative numbers", where,
          tokens, length);
  const std::int64_t head = rows.value_offset == 0 ? s.d_qk : rows.value_offset + s.d_v;
  const std::int64_t row = rows.row_stride, last_head = (s.h_kv - 1) * rows.head_stride;
  const bool in_one_row = row >= last_head + head && (s.h_kv == 1 || rows.head_stride >= head);
  const bool in_own_rows =
      row >= head && rows.head_stride >= (std::max(length, std::int64_t{1}) - 1) * row + head;
  require(in_one_row || in_own_rows,
          "{}: found {} rows {} floats apart of {} kv heads {} floats apart, expected room for heads of {} "
          "floats",
          where, length, row, s.h_kv, rows.head_stride, head);
}

}  // namespace mla
