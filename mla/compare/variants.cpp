#include "mla/compare/variants.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "mla/core/error.h"
#include "mla/model/census.h"
#include "mla/model/config.h"

namespace mla {
namespace {

using nlohmann::json;

/// What every config.json of the comparison says.
json common_fields(const ComparisonSizes& s) {
  return {{"vocab_size", s.vocab_size},
          {"hidden_size", s.hidden_size},
          {"intermediate_size", s.intermediate_size},
          {"num_hidden_layers", s.num_layers},
          {"num_attention_heads", s.num_heads},
          {"max_position_embeddings", s.max_context},
          {"hidden_act", "silu"},
          {"initializer_range", 0.02},
          {"rms_norm_eps", 1e-6},
          {"rope_parameters", {{"rope_theta", 10000.0}, {"rope_type", "default"}}},
          {"tie_word_embeddings", true},
          {"attention_bias", false},
          {"attention_dropout", 0.0},
          {"bos_token_id", 0},
          {"eos_token_id", 1},
          {"dtype", "bfloat16"}};
}

json heads_fields(const ComparisonSizes& s, std::int64_t kv_heads, const char* positions) {
  json fields = common_fields(s);
  fields["model_type"] = "llama";
  fields["architectures"] = {"LlamaForCausalLM"};
  fields["num_key_value_heads"] = kv_heads;
  fields["head_dim"] = s.head_dim;
  // Only our own models have other positions, so only they carry the field.
  if (std::string_view(positions) != "rotary") fields["position_encoding"] = positions;
  return fields;
}

json latent_fields(const ComparisonSizes& s, std::int64_t rope_dim) {
  json fields = common_fields(s);
  fields["model_type"] = "deepseek_v3";
  fields["architectures"] = {"DeepseekV3ForCausalLM"};
  fields["num_key_value_heads"] = s.num_heads;
  fields["q_lora_rank"] = nullptr;
  fields["kv_lora_rank"] = s.kv_lora_rank;
  fields["qk_nope_head_dim"] = s.head_dim;
  fields["qk_rope_head_dim"] = rope_dim;
  fields["v_head_dim"] = s.head_dim;
  return fields;
}

/// Gives the feed-forward the multiple of 8 at which the model has nearest to `parameters`.
void fit_feed_forward(json& fields, std::int64_t parameters, const ComparisonSizes& s) {
  const std::int64_t one = 3 * s.hidden_size * s.num_layers;  // of one more column in each layer
  const std::int64_t missing = parameters - count_parameters(parse_config(fields.dump(), "comparison")).total;
  const double steps = static_cast<double>(missing) / static_cast<double>(8 * one);
  fields["intermediate_size"] =
      std::max<std::int64_t>(8, s.intermediate_size + 8 * static_cast<std::int64_t>(std::lround(steps)));
}

Variant variant_of(const char* name, const char* directory, json fields, const ComparisonSizes& s,
                   std::int64_t parameters) {
  if (parameters > 0) fit_feed_forward(fields, parameters, s);
  const ModelConfig config = parse_config(fields.dump(), name);
  const Variant v{name,  directory, fields.dump(2) + "\n",         false,
                  false, false,     count_parameters(config).total};
  require(parameters == 0 || std::abs(v.parameters - parameters) * 50 <= parameters,
          "comparison: {}: found {} parameters, expected {} within 2 %: a wider feed-forward is needed", name,
          v.parameters, parameters);
  return v;
}

}  // namespace

std::vector<Variant> comparison_variants(const ComparisonSizes& s) {
  std::vector<Variant> all;
  const auto add = [&](const char* name, const char* directory, json fields) -> Variant& {
    const std::int64_t parameters = all.empty() ? 0 : all.front().parameters;
    return all.emplace_back(variant_of(name, directory, std::move(fields), s, parameters));
  };
  Variant& mha = add("MHA", "mha", heads_fields(s, s.num_heads, "rotary"));
  mha.compares_attention = mha.compares_positions = true;
  add("GQA", "gqa", heads_fields(s, s.grouped_heads, "rotary")).compares_attention = true;
  add("MQA", "mqa", heads_fields(s, 1, "rotary")).compares_attention = true;
  add("MLA without rope", "mla-without-rope", latent_fields(s, 0)).compares_attention = true;
  add("MLA", "mla", latent_fields(s, s.qk_rope_head_dim)).compares_attention = true;
  for (const char* positions : {"none", "integer", "binary", "sinusoidal"}) {
    const std::string name = fmt::format("MHA, {}", positions), directory = fmt::format("mha-{}", positions);
    add(name.c_str(), directory.c_str(), heads_fields(s, s.num_heads, positions)).compares_positions = true;
  }
  add("MHA, another seed", "mha-another-seed", heads_fields(s, s.num_heads, "rotary")).is_repeat = true;
  return all;
}

}  // namespace mla
