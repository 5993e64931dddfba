#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mla {

/// Sizes that all models of a comparison share. Latents follow DeepSeek-V2 (section 3.1.2): d_c = 4 heads'
/// width, d_r = half of one.
struct ComparisonSizes {
  std::int64_t vocab_size = 1024;
  std::int64_t hidden_size = 192;
  std::int64_t num_layers = 3;
  std::int64_t num_heads = 6;
  std::int64_t head_dim = 32;            ///< width of a key and of a value; of MLA d_n and d_v
  std::int64_t grouped_heads = 2;        ///< key and value heads of GQA
  std::int64_t kv_lora_rank = 128;       ///< d_c
  std::int64_t qk_rope_head_dim = 16;    ///< d_r
  std::int64_t intermediate_size = 512;  ///< of MHA; the others get what makes their parameters as many
  std::int64_t max_context = 8192;
};

/// One model of the comparison: they differ in attention or in how they learn where a token stands, and in
/// the width of the feed-forward that makes up for it.
struct Variant {
  std::string name;                 ///< "MLA without rope"
  std::string directory;            ///< "mla-without-rope"
  std::string config;               ///< text of its config.json
  bool compares_attention = false;  ///< one of MHA, GQA, MQA, MLA
  bool compares_positions = false;  ///< one of MHA's positions (chapter 3.7 to 3.10, and rotary)
  bool is_repeat = false;           ///< MHA once more from another seed: how much chance decides
  std::int64_t parameters = 0;
};

/// MHA, GQA, MQA, MLA without and with the decoupled rope; MHA with no positions, integers, bits, waves; and
/// MHA from another seed. (MHA itself, which turns keys and queries, belongs to both lists.) The first is
/// MHA; the parameters of all are within 2 % of its. Throws Error for sizes that make no such models.
std::vector<Variant> comparison_variants(const ComparisonSizes& sizes);

}  // namespace mla
