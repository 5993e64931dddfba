#include "mla/attention/head_tiles.h"

#include "mla/core/error.h"

namespace mla {

void check_rows(const char* where, const AttentionShape& s, const RowShape& rows) {
  require(s.h_q >= 1 && s.h_kv >= 1 && s.d_qk >= 1 && s.d_v >= 1 && s.h_q % s.h_kv == 0,
          "{}: found h_q {}, h_kv {}, d_qk {}, d_v {}, expected positive sizes and h_q a multiple of h_kv",
          where, s.h_q, s.h_kv, s.d_qk, s.d_v);
  require(
      rows.value_offset == 0 ? s.d_v <= s.d_qk : rows.value_offset >= s.d_qk,
      "{}: found d_qk {}, d_v {}, values {} floats behind keys, expected them behind the key, or as a part "
      "of it",
      where, s.d_qk, s.d_v, rows.value_offset);
  const std::int64_t head = rows.value_offset == 0 ? s.d_qk : rows.value_offset + s.d_v;
  require(
      (s.h_kv == 1 || rows.head_stride >= head) && rows.row_stride >= (s.h_kv - 1) * rows.head_stride + head,
      "{}: found {} kv heads {} floats apart in rows {} floats apart, expected room for heads of {} floats",
      where, s.h_kv, rows.head_stride, rows.row_stride, head);
}

void check_lengths(const char* where, std::int64_t tokens, std::int64_t length) {
  require(length >= 0 && tokens >= 0, "{}: found {} tokens over {} rows, expected no negative numbers", where,
          tokens, length);
}

}  // namespace mla
