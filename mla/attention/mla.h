#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "mla/cache/kv_cache.h"
#include "mla/core/tensor.h"
#include "mla/kernels/matmul.h"
#include "mla/position/rotary.h"

namespace mla {

/// The two ways to attend to a latent cache (DeepSeek-V2, section 2.1). Both give the same numbers.
enum class MlaForm {
  automatic,   ///< whichever is faster for the call: choose_form
  decompress,  ///< explicit: K and V are rebuilt from the latents with W_UK and W_UV, then multi-head
               ///< attention (chapter 3.4.3)
  absorb,  ///< absorbed: W_UK goes into the query and W_UV behind the sum; attention runs over the latents
           ///< themselves
};

/// "auto", "explicit" or "absorbed".
const char* name_of(MlaForm form);

/// The form of that name. Throws Error naming `field`.
MlaForm form_named(std::string_view name, std::string_view field);

/// Sizes of one MLA layer, in the names of design and paper.
struct MlaShape {
  std::int64_t hidden_size = 0;       ///< d
  std::int64_t num_heads = 0;         ///< n_h
  std::int64_t q_lora_rank = 0;       ///< d_c'; 0: queries are not compressed
  std::int64_t kv_lora_rank = 0;      ///< d_c
  std::int64_t qk_nope_head_dim = 0;  ///< d_n
  std::int64_t qk_rope_head_dim = 0;  ///< d_r
  std::int64_t v_head_dim = 0;        ///< d_v
  double softmax_scale = 1.0;
  double norm_epsilon = 1e-6;  ///< of the norms of the two latents

  std::int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  std::int64_t latent_width() const { return kv_lora_rank + qk_rope_head_dim; }
};

/// Weights of one MLA layer. Checkpoint names on the right. (Chapter 3.2.)
struct MlaWeights {
  Weight q_proj;                     ///< [n_h (d_n + d_r), d]     q_proj, only without query compression
  Weight q_a_proj;                   ///< W_DQ [d_c', d]           q_a_proj
  std::span<const float> q_a_norm;   ///< [d_c']                   q_a_layernorm
  Weight q_b_proj;                   ///< W_UQ, W_QR [n_h (d_n + d_r), d_c']   q_b_proj
  Weight kv_a_proj;                  ///< W_DKV, W_KR [d_c + d_r, d]           kv_a_proj_with_mqa
  std::span<const float> kv_a_norm;  ///< [d_c]                    kv_a_layernorm
  Weight kv_b_proj;                  ///< per head W_UK [d_n, d_c], then W_UV [d_v, d_c]   kv_b_proj
  Weight o_proj;                     ///< W_O [d, n_h d_v]         o_proj

  Weight w_uk(const MlaShape& s, std::int64_t head) const;
  Weight w_uv(const MlaShape& s, std::int64_t head) const;
};

/// Memory that calls of mla_forward reuse. It grows with the tokens of one call, never with the length of the
/// cache.
struct MlaScratch {
  Buffer<float> query_latent;   // [tokens, d_c']
  Buffer<float> queries;        // [tokens, n_h (d_n + d_r)]
  Buffer<float> latents;        // [tokens, d_c + d_r]
  Buffer<float> absorbed;       // [tokens, n_h (d_c + d_r)]
  Buffer<float> context;        // [tokens, n_h d_c]
  Buffer<float> values;         // [tokens, n_h d_v]
  Buffer<float> sums;           // [2, tokens, n_h]
  Buffer<float> part_latents;   // [part_rows, d_c + d_r]
  Buffer<float> part_expanded;  // [part_rows, n_h (d_n + d_v)]
  Buffer<std::byte> part_rows;  // [n_h][part_rows] rows [k | v]
};

/// Tokens that one call works on, and how.
struct MlaCall {
  std::int64_t layer = 0;
  std::int64_t first_position = 0;  ///< of x's first row; the cache already has room for all of x's rows
  const Rotary* rotary = nullptr;
  const Rotary::Table* table = nullptr;  ///< cosines and sines of the call's positions
  MlaForm form = MlaForm::automatic;
  DType compute = DType::f32;  ///< f32 or bf16, as in matmul
};

/// Multi-head latent attention of the tokens x [tokens, d] over their past and themselves: out [tokens, d].
/// Writes the tokens' rows into `cache` and nothing else is kept. (Chapter 3.2 to 3.4, and the decoupled
/// architecture.)
void mla_forward(const MlaShape& shape, const MlaWeights& weights, const MlaCall& call,
                 MatrixView<const float> x, KvCache& cache, MlaScratch& scratch, MatrixView<float> out);

/// The part of mla_forward that the forms differ in: attention of the rotated queries [tokens, n_h (d_n +
/// d_r)], whose tokens' rows end `cache`: values [tokens, n_h d_v]. (Chapter 3.3.2, 3.3.3 and 3.4.3.)
void mla_attend(const MlaShape& shape, const MlaWeights& weights, const MlaCall& call,
                MatrixView<float> queries, const KvCache& cache, MlaScratch& scratch,
                MatrixView<float> values);

/// The form that `automatic` means for `tokens` new tokens over `length` rows in all, stored as `rows`: the
/// one that takes less time by the measured costs in form_cost.h. It depends on nothing else (not on
/// threads), so the same call chooses the same form on one CPU. (Chapter 3.3.2.)
MlaForm choose_form(const MlaShape& shape, std::int64_t tokens, std::int64_t length, DType compute,
                    DType rows);

}  // namespace mla
