#pragma once
#include <cstdint>

#include "mla/attention/attention.h"
#include "mla/cache/kv_view.h"
#include "mla/core/tensor.h"
#include "mla/kernels/matmul.h"

namespace mla {

/// What explicit attention over latents is told: the names are MlaShape's.
struct LatentShape {
  std::int64_t num_heads = 0;         ///< n_h
  std::int64_t kv_lora_rank = 0;      ///< d_c
  std::int64_t qk_nope_head_dim = 0;  ///< d_n
  std::int64_t qk_rope_head_dim = 0;  ///< d_r
  std::int64_t v_head_dim = 0;        ///< d_v
  float scale = 1.0f;                 ///< positive; multiplies q . k before the softmax

  std::int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
};

/// Causal attention of the sequence's last tokens, queries [tokens, n_h (d_n + d_r)], over all its rows
/// [c_kv | k_rope], themselves included: out [tokens, n_h d_v]. `rows` says how the rows of `kv` are encoded.
/// kv_b_proj as in MlaWeights.
///
/// Keys and values are rebuilt one head and one tile of rows at a time, for all queries, in products of bf16
/// pairs (mla/kernels/prefill.h); everything but sums is rounded to bf16. Memory grows with the tokens, not
/// with the rows. The bits of a token's result depend neither on the other tokens of the call, nor on threads
/// and pages. REQUIRES has_prefill(). Throws Error if sizes do not fit.
void prefill_latents(const LatentShape& shape, const Weight& kv_b_proj, MatrixView<const float> queries,
                     const KvView& kv, const RowLayout& rows, MatrixView<float> out);

/// The same over rows [k | v] of bf16, as `attend` takes them: out [tokens][h_q][d_v]. Only causal shapes.
void prefill_heads(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out);

}  // namespace mla
