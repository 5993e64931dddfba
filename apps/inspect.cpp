// mla inspect: what a checkpoint is, and what its cache costs beside other attentions (chapter 3.5.1).
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "mla/model/census.h"

namespace mla::app {
namespace {

using nlohmann::ordered_json;

const char* name_of(RopeScaling scaling) {
  return scaling == RopeScaling::yarn ? "yarn" : scaling == RopeScaling::longrope ? "longrope" : "none";
}

const char* name_of(RopeLayout layout) {
  return layout == RopeLayout::interleaved ? "interleaved" : "half-split";
}

const char* name_of(GroupRank rank) {
  return rank == GroupRank::best       ? "best expert"
         : rank == GroupRank::best_two ? "sum of the best two"
                                       : "none";
}

std::int64_t moe_layers(const ModelConfig& c) {
  std::int64_t count = 0;
  for (const bool is_moe : c.layer_is_moe) count += is_moe;
  return count;
}

ordered_json shape_json(const ModelConfig& c) {
  return {{"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden_size},
          {"num_layers", c.num_layers},
          {"num_heads", c.num_heads},
          {"q_lora_rank", c.q_lora_rank},
          {"kv_lora_rank", c.kv_lora_rank},
          {"qk_nope_head_dim", c.qk_nope_head_dim},
          {"qk_rope_head_dim", c.qk_rope_head_dim},
          {"v_head_dim", c.v_head_dim},
          {"intermediate_size", c.intermediate_size},
          {"max_context", c.max_context},
          {"softmax_scale", c.softmax_scale},
          {"norm_epsilon", c.norm_epsilon},
          {"latent_norm_epsilon", c.latent_norm_epsilon},
          {"tied_head", c.tied_head},
          {"rope",
           {{"layout", name_of(c.rope.layout)},
            {"theta", c.rope.theta},
            {"scaling", name_of(c.rope.scaling)},
            {"factor", c.rope.factor},
            {"attention_factor", c.rope.attention_factor}}}};
}

ordered_json moe_json(const ModelConfig& c) {
  return {{"layers", moe_layers(c)},
          {"experts", c.moe.num_experts},
          {"experts_per_token", c.moe.experts_per_token},
          {"shared_experts", c.moe.shared_experts},
          {"intermediate_size", c.moe.intermediate_size},
          {"gate", c.moe.gate == GateKind::softmax ? "softmax" : "sigmoid"},
          {"bias", c.moe.has_bias},
          {"groups", c.moe.num_groups},
          {"groups_kept", c.moe.groups_kept},
          {"group_rank", name_of(c.moe.group_rank)},
          {"normalise", c.moe.normalise},
          {"scale", c.moe.scale}};
}

/// Bytes per token in bf16 rows, and how many times more than MLA's.
ordered_json cache_json(const CacheCensus& cache) {
  const auto entry = [&](std::int64_t values) {
    return ordered_json{{"values_per_token", values},
                        {"bytes_per_token_bf16", 2 * values},
                        {"ratio", static_cast<double>(values) / static_cast<double>(cache.mla)}};
  };
  return {{"mla", entry(cache.mla)},
          {"mha", entry(cache.mha)},
          {fmt::format("gqa{}", cache.gqa_groups), entry(cache.gqa)},
          {"mqa", entry(cache.mqa)},
          {"mha_over_mla", static_cast<double>(cache.mha) / static_cast<double>(cache.mla)},
          {"mha_over_latent_without_rotary_key",
           static_cast<double>(cache.mha) / static_cast<double>(cache.latent_only)}};
}

/// What is known of a checkpoint: its config, and its weights if they are there.
struct Checked {
  ModelConfig config;
  std::optional<Checkpoint> checkpoint;
  std::vector<std::string> not_used;  // tensors of next-token-prediction layers
};

Checked check(const std::filesystem::path& directory) {
  Checked checked{read_config(directory), std::nullopt, {}};
  std::error_code ignored;
  const auto has = [&](const char* file) { return std::filesystem::exists(directory / file, ignored); };
  if (has("model.safetensors") || has("model.safetensors.index.json")) {
    checked.checkpoint = Checkpoint::open(directory);
    checked.not_used = bind_weights(checked.config, *checked.checkpoint).not_used;
  }
  return checked;
}

ordered_json to_json(const Checked& checked) {
  const ModelConfig& c = checked.config;
  const ParameterCount parameters = count_parameters(c);
  ordered_json json = {{"model_type", c.model_type},
                       {"parameters", {{"total", parameters.total}, {"active", parameters.active}}},
                       {"weight_bytes", nullptr},
                       {"shape", shape_json(c)}};
  if (checked.checkpoint) json["weight_bytes"] = checked.checkpoint->total_bytes();
  if (c.moe.num_experts > 0) json["moe"] = moe_json(c);
  json["cache"] = cache_json(count_cache(c));
  json["next_token_layer_tensors"] = checked.not_used;
  json["unread_fields"] = c.unread_fields;
  return json;
}

std::string describe_shape(const ModelConfig& c) {
  std::string text = fmt::format(
      "shape          {} layers, hidden {}, {} heads of {} + {} (rope), values {}\n"
      "latents        c_kv {}, queries {}\n"
      "vocabulary     {}, context {}\n"
      "rope           {}, theta {}, scaling {}\n"
      "softmax scale  {:.7f}\n",
      c.num_layers, c.hidden_size, c.num_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim,
      c.kv_lora_rank, c.q_lora_rank > 0 ? fmt::format("{}", c.q_lora_rank) : "not compressed", c.vocab_size,
      c.max_context, name_of(c.rope.layout), c.rope.theta,
      c.rope.scaling == RopeScaling::none ? "none"
                                          : fmt::format("{} by {}", name_of(c.rope.scaling), c.rope.factor),
      c.softmax_scale);
  if (c.moe.num_experts > 0) {
    text +=
        fmt::format("experts        {} of {} + {} shared, width {}, {} gate, {} of {} groups, in {} layers\n",
                    c.moe.experts_per_token, c.moe.num_experts, c.moe.shared_experts, c.moe.intermediate_size,
                    c.moe.gate == GateKind::softmax ? "softmax" : "sigmoid", c.moe.groups_kept,
                    c.moe.num_groups, moe_layers(c));
  }
  return text;
}

std::string describe_cache(const CacheCensus& cache) {
  std::string text = "\ncache per token, all layers, bf16 rows\n";
  const auto line = [&](const std::string& name, std::int64_t values) {
    const double ratio = static_cast<double>(values) / static_cast<double>(cache.mla);
    text += fmt::format("  {:<8}{:>12} bytes  {:>6.1f}x\n", name, 2 * values, ratio);
  };
  line("MLA", cache.mla);
  line("MQA", cache.mqa);
  line(fmt::format("GQA ({})", cache.gqa_groups), cache.gqa);
  line("MHA", cache.mha);
  text += fmt::format("MHA keeps {:.0f}x what MLA keeps; {:.0f}x without the rotary key\n",
                      static_cast<double>(cache.mha) / static_cast<double>(cache.mla),
                      static_cast<double>(cache.mha) / static_cast<double>(cache.latent_only));
  return text;
}

}  // namespace

void inspect(const InspectOptions& options) {
  const auto directory = model_directory(options.model);
  const Checked checked = check(directory);
  if (options.json) return say(to_json(checked).dump(2) + "\n");
  const ModelConfig& c = checked.config;
  const ParameterCount parameters = count_parameters(c);
  std::string text =
      fmt::format("model          {}, {}\nparameters     {} in all, {} active per token\nweights        {}\n",
                  c.model_type, directory.string(), parameters.total, parameters.active,
                  checked.checkpoint ? fmt::format("{} bytes", checked.checkpoint->total_bytes())
                                     : "none in this directory");
  text += describe_shape(c) + describe_cache(count_cache(c));
  if (!checked.not_used.empty()) {
    text += fmt::format("\nnot used (next-token prediction): {}\n", fmt::join(checked.not_used, ", "));
  }
  if (!c.unread_fields.empty())
    text += fmt::format("\nconfig fields not known: {}\n", fmt::join(c.unread_fields, ", "));
  say(text);
}

}  // namespace mla::app
