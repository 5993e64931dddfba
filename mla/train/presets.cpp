#include "mla/train/presets.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "mla/core/error.h"

namespace mla {
namespace {

using nlohmann::json;

/// What the presets differ in.
struct Sizes {
  std::int64_t vocabulary, hidden, dense, layers, heads, q_latent, kv_latent, nope, rope, value, expert;
};

constexpr std::string_view names[] = {"tiny", "small"};
constexpr Sizes sizes[] = {
    {1024, 128, 320, 3, 4, 48, 32, 16, 16, 16, 80},
    {2048, 256, 640, 4, 4, 96, 64, 32, 16, 32, 192},
};

const Sizes& sizes_of(std::string_view name) {
  const auto found = std::ranges::find(names, name);
  require(found != std::end(names), "preset: found '{}', expected {}", name, fmt::join(names, " or "));
  return sizes[found - names];
}

json id_or_null(std::int64_t id, std::int64_t vocabulary, const char* what) {
  require(id >= -1 && id < vocabulary, "{}: found {}, expected -1 (none) or an id below {}", what, id,
          vocabulary);
  return id < 0 ? json() : json(id);
}

/// The fields in which the presets are alike.
json common_fields() {
  return json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": false,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 1024,
    "model_type": "deepseek_v3",
    "n_group": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": true,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 0,
    "output_router_logits": false,
    "pad_token_id": null,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_interleave": true,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": false,
    "topk_group": 1,
    "transformers_version": "5.24.0",
    "use_cache": true
  })");
}

}  // namespace

std::span<const std::string_view> preset_names() {
  return names;
}

std::string preset_config(std::string_view name, PresetVocabulary vocabulary) {
  const Sizes& s = sizes_of(name);
  if (vocabulary.size == 0) vocabulary.size = s.vocabulary;
  require(vocabulary.size >= 1 && vocabulary.size <= INT32_MAX,
          "vocabulary: found {} tokens, expected 1 to 2^31 - 1", vocabulary.size);
  json config = common_fields();
  config["bos_token_id"] = id_or_null(vocabulary.bos_id, vocabulary.size, "bos_token_id");
  config["eos_token_id"] = id_or_null(vocabulary.eos_id, vocabulary.size, "eos_token_id");
  config["vocab_size"] = vocabulary.size;
  config["hidden_size"] = s.hidden;
  config["intermediate_size"] = s.dense;
  config["num_hidden_layers"] = s.layers;
  config["num_attention_heads"] = s.heads;
  config["num_key_value_heads"] = s.heads;
  config["q_lora_rank"] = s.q_latent;
  config["kv_lora_rank"] = s.kv_latent;
  config["qk_nope_head_dim"] = s.nope;
  config["qk_rope_head_dim"] = s.rope;
  config["qk_head_dim"] = s.nope + s.rope;
  config["head_dim"] = s.rope;  // what transformers rotates
  config["v_head_dim"] = s.value;
  config["moe_intermediate_size"] = s.expert;
  return config.dump(2) + "\n";
}

}  // namespace mla
