#pragma once
#include <cstdint>

#include "mla/cache/kv_cache.h"
#include "mla/core/tensor.h"
#include "mla/kernels/matmul.h"
#include "mla/position/rotary.h"

namespace mla {

/// Sizes of one layer of attention with key and value heads. MHA: num_kv_heads = num_heads (Vaswani et al.
/// 2017). GQA: fewer (Ainslie et al. 2023). MQA: one (Shazeer 2019). They differ in nothing else.
struct HeadsShape {
  std::int64_t hidden_size = 0;   ///< d
  std::int64_t num_heads = 0;     ///< n_h
  std::int64_t num_kv_heads = 0;  ///< h_kv, a divisor of n_h; head h reads kv head h / (n_h / h_kv)
  std::int64_t head_dim = 0;      ///< width of a query, a key and a value
  double softmax_scale = 1.0;
};

/// Weights of one such layer. Checkpoint names are the fields'.
struct HeadsWeights {
  Weight q_proj;  ///< [n_h head_dim, d]
  Weight k_proj;  ///< [h_kv head_dim, d]
  Weight v_proj;  ///< [h_kv head_dim, d]
  Weight o_proj;  ///< [d, n_h head_dim]
};

/// Memory that calls of gqa_forward reuse. It grows with the tokens of one call, never with the length of the
/// cache.
struct HeadsScratch {
  Buffer<float> queries;     // [tokens, n_h head_dim]
  Buffer<float> keys;        // [tokens, h_kv head_dim]
  Buffer<float> new_values;  // [tokens, h_kv head_dim] of the tokens themselves
  Buffer<float> row;         // [h_kv 2 head_dim] one row of the cache
  Buffer<float> values;      // [tokens, n_h head_dim] what the heads found
};

/// Which kernels attend. Their results differ in the last bits; each by itself gives a token the same bits in
/// any chunk.
enum class HeadsKernels {
  automatic,  ///< choose_kernels
  online,     ///< attend: any types, made for few new tokens
  panels,     ///< prefill_heads: bf16 products over bf16 rows where has_prefill(), made for many
};

/// Tokens that one call works on, and how.
struct HeadsCall {
  std::int64_t layer = 0;
  std::int64_t first_position = 0;       ///< of x's first row; the cache already has room for all of x's rows
  const Rotary* rotary = nullptr;        ///< of dim head_dim, or 0: nothing is turned
  const Rotary::Table* table = nullptr;  ///< cosines and sines of the call's positions
  HeadsKernels kernels = HeadsKernels::automatic;
  DType compute = DType::f32;  ///< f32 or bf16, as in matmul
};

/// Causal attention with key and value heads of the tokens x [tokens, d] over their past and themselves: out
/// [tokens, d]. The counterpart of mla_forward (chapter 3.1): queries, keys and values are products of x,
/// queries and keys are rotated whole, and each token leaves a row [k | v] per kv head in `cache`, whose
/// layout is RowLayout::heads(h_kv, head_dim, head_dim). Throws Error if the tokens do not end the cache, and
/// as gqa_attend does.
///
/// Pages, threads and chunks change no bit of a token's result; with `automatic`, chunks decide which kernels
/// attend.
void gqa_forward(const HeadsShape& shape, const HeadsWeights& weights, const HeadsCall& call,
                 MatrixView<const float> x, KvCache& cache, HeadsScratch& scratch, MatrixView<float> out);

/// The attention in it: of the rotated queries [tokens, n_h head_dim], whose tokens' rows end `cache`:
/// values [tokens, n_h head_dim], dense. Throws Error for panels where there are none.
void gqa_attend(const HeadsShape& shape, const HeadsCall& call, MatrixView<const float> queries,
                const KvCache& cache, MatrixView<float> values);

/// What `automatic` means for `tokens` new tokens over rows stored as `rows`: panels where there are some and
/// they are faster. They work on 32 tokens of one head at a time, full or not, while `attend` works on all
/// heads of a kv head side by side: so the more heads share one, the more tokens it takes. Measured with
/// `mla bench attention --variant gqa`, widths 64 and 128 over 1024 rows: panels win from 5 tokens on for
/// MHA (4 times at 512), from 9 with two heads to a kv head, about 24 with four, 64 with sixteen (1.15 times
/// at 512).
HeadsKernels choose_kernels(const HeadsShape& shape, std::int64_t tokens, DType compute, DType rows);

}  // namespace mla
