#include "mla/model/census.h"

#include <algorithm>

namespace mla {
namespace {

std::int64_t attention_parameters(const ModelConfig& c) {
  if (c.attention == AttentionKind::heads)
    return 2 * c.hidden_size * c.head_dim * (c.num_heads + c.num_kv_heads);
  const std::int64_t query_width = c.num_heads * c.qk_head_dim();
  const std::int64_t query =
      c.q_lora_rank > 0 ? c.q_lora_rank * (c.hidden_size + 1 + query_width) : c.hidden_size * query_width;
  const std::int64_t compress = c.latent_width() * c.hidden_size + c.kv_lora_rank;
  const std::int64_t decompress = c.num_heads * (c.qk_nope_head_dim + c.v_head_dim) * c.kv_lora_rank;
  return query + compress + decompress + c.hidden_size * c.num_heads * c.v_head_dim;
}

}  // namespace

ParameterCount count_parameters(const ModelConfig& c) {
  ParameterCount count;
  const auto add = [&](std::int64_t all, std::int64_t touched) {
    count.total += all;
    count.active += touched;
  };
  const std::int64_t table = c.vocab_size * c.hidden_size;
  add(table, table);
  if (!c.tied_head) add(table, table);
  add(c.hidden_size, c.hidden_size);  // the final norm
  const std::int64_t attention = attention_parameters(c) + 2 * c.hidden_size;
  const std::int64_t expert = 3 * c.hidden_size * c.moe.intermediate_size;
  for (const bool is_moe : c.layer_is_moe) {
    add(attention, attention);
    if (is_moe) {
      const std::int64_t gate = c.moe.num_experts * (c.hidden_size + (c.moe.has_bias ? 1 : 0));
      const std::int64_t always = gate + c.moe.shared_experts * expert;
      add(always + c.moe.num_experts * expert, always + c.moe.experts_per_token * expert);
    } else {
      add(3 * c.hidden_size * c.intermediate_size, 3 * c.hidden_size * c.intermediate_size);
    }
  }
  return count;
}

CacheCensus count_cache(const ModelConfig& c) {
  CacheCensus census;
  const bool is_latent = c.attention == AttentionKind::latent;
  const std::int64_t head = is_latent ? c.qk_nope_head_dim + c.v_head_dim : 2 * c.head_dim;
  const bool is_gqa = !is_latent && c.num_kv_heads > 1 && c.num_kv_heads < c.num_heads;
  census.gqa_groups = is_gqa ? c.num_kv_heads : std::min<std::int64_t>(8, c.num_heads);
  census.mla = c.num_layers * c.latent_width();
  census.latent_only = c.num_layers * c.kv_lora_rank;
  census.kept = c.num_layers * (is_latent ? c.latent_width() : c.heads_width());
  census.mha = c.num_layers * c.num_heads * head;
  census.gqa = c.num_layers * census.gqa_groups * head;
  census.mqa = c.num_layers * head;
  return census;
}

const char* attention_name(const ModelConfig& c) {
  if (c.attention == AttentionKind::latent) return "MLA";
  return c.num_kv_heads == c.num_heads ? "MHA" : c.num_kv_heads == 1 ? "MQA" : "GQA";
}

}  // namespace mla
