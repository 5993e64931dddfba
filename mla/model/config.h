#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "mla/position/additive.h"
#include "mla/position/rope_spec.h"

namespace mla {

/// What a token leaves behind for those that follow.
enum class AttentionKind {
  latent,  ///< MLA: one latent and one rotated key, from which every head's keys and values come
  heads,   ///< MHA, GQA, MQA: a key and a value of each of num_kv_heads heads
};

/// How a mixture-of-experts layer scores and chooses its experts.
enum class GateKind {
  softmax,  ///< DeepSeek-V2: softmax scores choose and weigh
  sigmoid,  ///< DeepSeek-V3: sigmoid scores weigh, score + bias chooses
};

/// How groups of experts are ranked before experts are chosen inside the best ones.
enum class GroupRank {
  none,      ///< no groups
  best,      ///< by the best expert (DeepSeek-V2)
  best_two,  ///< by the sum of the best two (DeepSeek-V3)
};

struct MoeConfig {
  std::int64_t num_experts = 0;        ///< n_routed_experts
  std::int64_t experts_per_token = 0;  ///< num_experts_per_tok
  std::int64_t shared_experts = 0;     ///< n_shared_experts; one feed-forward of that many times the width
  std::int64_t intermediate_size = 0;  ///< moe_intermediate_size
  GateKind gate = GateKind::sigmoid;
  bool has_bias = false;  ///< e_score_correction_bias
  GroupRank group_rank = GroupRank::none;
  std::int64_t num_groups = 1;   ///< n_group
  std::int64_t groups_kept = 1;  ///< topk_group
  bool normalise = false;        ///< norm_topk_prob: weights of the chosen experts sum to one, then scale
  double scale = 1.0;            ///< routed_scaling_factor
};

/// FP8 weights: one f32 scale (`weight_scale_inv`) per block of this many rows and columns.
struct Fp8Blocks {
  std::int64_t rows = 0;  ///< 0: the checkpoint is not quantised
  std::int64_t cols = 0;
};

/// A model of one of the families, every feature explicit. Sizes are checked: positive, and no product that
/// the engine forms from them overflows. Those of the other kind of attention are 0.
struct ModelConfig {
  std::string model_type;  ///< deepseek_v2, deepseek_v3, kimi_k2, glm4_moe_lite, minicpm3 or llama
  AttentionKind attention = AttentionKind::latent;
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;        ///< d
  std::int64_t intermediate_size = 0;  ///< width of a dense feed-forward
  std::int64_t num_layers = 0;         ///< num_hidden_layers
  std::int64_t num_heads = 0;          ///< n_h
  std::int64_t num_kv_heads = 0;       ///< heads: num_key_value_heads, a divisor of n_h
  std::int64_t head_dim = 0;           ///< heads: width of a query, a key and a value
  std::int64_t q_lora_rank = 0;        ///< d_c'; 0: queries are not compressed
  std::int64_t kv_lora_rank = 0;       ///< d_c
  std::int64_t qk_nope_head_dim = 0;   ///< d_n
  std::int64_t qk_rope_head_dim = 0;   ///< d_r; 0: nothing is rotated
  std::int64_t v_head_dim = 0;         ///< d_v
  std::int64_t max_context = 0;        ///< max_position_embeddings
  double norm_epsilon = 1e-6;          ///< rms_norm_eps, of the two norms of a layer and the final one
  double latent_norm_epsilon =
      1e-6;                    ///< of q_a_layernorm and kv_a_layernorm: 1e-6 whatever rms_norm_eps says
  double softmax_scale = 0.0;  ///< (d_n + d_r)^-0.5, times mscale(factor, mscale_all_dim)^2 under YaRN;
                               ///< heads: head_dim^-0.5
  PositionKind position = PositionKind::rotary;  ///< position_encoding, our own field of llama's config.json
  RopeSpec rope;                                 ///< dim 0 unless position is rotary

  MoeConfig moe;                   ///< num_experts 0: every layer is dense
  std::vector<bool> layer_is_moe;  ///< one per layer

  bool tied_head = false;        ///< tie_word_embeddings
  double embedding_scale = 1.0;  ///< MiniCPM3's scale_emb; sqrt(d) where positions are added
  double residual_scale = 1.0;   ///< MiniCPM3's scale_depth / sqrt(num_layers)
  double logit_scale = 1.0;      ///< MiniCPM3's dim_model_base / hidden_size

  Fp8Blocks fp8;
  std::int64_t bos_id = -1;  ///< -1: none
  std::vector<std::int64_t> eos_ids;
  std::vector<std::string> unread_fields;  ///< fields of config.json that this program does not know

  std::int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  /// Values of one row [c_kv | k_rope].
  std::int64_t latent_width() const { return kv_lora_rank + qk_rope_head_dim; }
  /// Values of one row [k | v] per kv head.
  std::int64_t heads_width() const { return 2 * num_kv_heads * head_dim; }
};

/// Reads `directory`/config.json. Throws Error naming the file, the field, what was found and what was
/// expected: for an unknown model_type, and for anything that changes results and that this engine lacks.
ModelConfig read_config(const std::filesystem::path& directory);

/// The same from text; `source` names it in errors.
ModelConfig parse_config(std::string_view text, const std::string& source);

}  // namespace mla
