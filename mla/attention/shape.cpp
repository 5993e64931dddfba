#include "mla/attention/shape.h"

#include "mla/core/error.h"

namespace mla {

void check_shape(const char* where, const AttentionShape& s) {
  require(s.h_q >= 1 && s.h_kv >= 1 && s.d_qk >= 1 && s.d_v >= 1 && s.h_q % s.h_kv == 0,
          "{}: found h_q {}, h_kv {}, d_qk {}, d_v {}, expected positive sizes and h_q a multiple of h_kv",
          where, s.h_q, s.h_kv, s.d_qk, s.d_v);
}

}  // namespace mla
