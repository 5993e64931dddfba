#include "mla/model/config_heads.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "mla/model/config_rope.h"

namespace mla {
namespace {

void refuse_other_families(JsonFields& fields) {
  for (const char* name : {"q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
                           "v_head_dim", "n_routed_experts", "num_local_experts", "num_experts"}) {
    if (fields.has(name)) fields.refuse(name, "no such field for llama");
  }
}

void read_sizes(JsonFields& fields, ModelConfig& config) {
  config.num_kv_heads =
      fields.has("num_key_value_heads") ? fields.size("num_key_value_heads") : config.num_heads;
  if (config.num_heads % config.num_kv_heads != 0) {
    fields.refuse("num_key_value_heads",
                  fmt::format("a divisor of num_attention_heads {}", config.num_heads));
  }
  if (fields.has("head_dim")) {
    config.head_dim = fields.size("head_dim");
    return;
  }
  if (config.hidden_size % config.num_heads != 0) {
    fields.refuse("num_attention_heads",
                  fmt::format("a divisor of hidden_size {}, as head_dim is not given", config.hidden_size));
  }
  config.head_dim = config.hidden_size / config.num_heads;
}

PositionKind read_position_kind(JsonFields& fields) {
  if (!fields.has("position_encoding")) return PositionKind::rotary;
  const std::string name =
      fields.word("position_encoding", {"rotary", "none", "integer", "binary", "sinusoidal"});
  return name == "rotary"    ? PositionKind::rotary
         : name == "none"    ? PositionKind::none
         : name == "integer" ? PositionKind::integer
         : name == "binary"  ? PositionKind::binary
                             : PositionKind::sinusoidal;
}

void read_positions(JsonFields& fields, ModelConfig& config) {
  config.position = read_position_kind(fields);
  fields.must_be("rope_interleave", false);
  const bool is_rotary = config.position == PositionKind::rotary;
  const RopeRules rules{"head_dim", 10000.0, true};
  // What is not rotated may have any width; its rope fields are read all the same, to be known.
  config.rope = read_rope(fields, rules, is_rotary ? config.head_dim : 0, config.max_context).spec;
  config.rope.layout = RopeLayout::half_split;
  if (!is_rotary && config.rope.scaling != RopeScaling::none) {
    fields.refuse("position_encoding", "rotary beside a rope_type that stretches the context");
  }
}

}  // namespace

void read_heads(JsonFields& fields, ModelConfig& config) {
  refuse_other_families(fields);
  read_sizes(fields, config);
  read_positions(fields, config);
  config.softmax_scale = 1.0 / std::sqrt(static_cast<double>(config.head_dim));
  // Positions that are added are about 1 in size, and would drown embeddings that begin at 0.02. So these are
  // scaled up, as they were where positions were first added (Vaswani et al. 2017, section 3.4).
  const bool is_added = config.position != PositionKind::rotary && config.position != PositionKind::none;
  if (is_added) config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
}

}  // namespace mla
