#pragma once
#include "mla/model/config.h"
#include "mla/model/config_fields.h"

namespace mla {

/// Reads what config.json says about attention with key and value heads (MHA, GQA, MQA) and its positions,
/// as LlamaConfig of transformers has it: num_key_value_heads is num_attention_heads if it isn't given,
/// head_dim hidden_size / num_attention_heads, rope_theta 10000. Our own field position_encoding says
/// otherwise than rotary. Refuses the fields of latent attention and of experts.
/// REQUIRES hidden_size, num_heads and max_context to be read.
void read_heads(JsonFields& fields, ModelConfig& config);

}  // namespace mla
