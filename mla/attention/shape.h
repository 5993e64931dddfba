#pragma once
#include <cstdint>

namespace mla {

/// All that an attention kernel is told about a variant. MHA: h_kv = h_q. GQA: fewer. MQA: one. Explicit MLA
/// is MHA with d_qk = d_n + d_r; absorbed MLA is MQA with d_qk = d_c + d_r and d_v = d_c, its values the
/// first part of its keys.
struct AttentionShape {
  std::int64_t h_q = 0;   ///< query heads, a multiple of h_kv
  std::int64_t h_kv = 0;  ///< kv heads; query head h reads kv head h / (h_q / h_kv)
  std::int64_t d_qk = 0;
  std::int64_t d_v = 0;
  float scale = 1.0f;  ///< multiplies q . k before the softmax
  bool causal =
      true;  ///< aligned to the bottom right: the last query sees every row, the one before all but one, ...
};

/// Throws Error, which begins with `where`, for one that is none.
void check_shape(const char* where, const AttentionShape& shape);

/// Queries of consecutive tokens: token t's head h is at data + t * token_stride + h * head_stride, d_qk
/// values.
struct QueryView {
  const float* data = nullptr;
  std::int64_t tokens = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

}  // namespace mla
