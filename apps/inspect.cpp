// mla inspect: what a checkpoint is, and what its cache costs beside other attentions (chapter 3.5.1).
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "mla/cache/row_layout.h"
#include "mla/model/census.h"

namespace mla::app {
namespace {

using nlohmann::ordered_json;

const char* name_of(RopeScaling scaling) {
  return scaling == RopeScaling::yarn       ? "yarn"
         : scaling == RopeScaling::longrope ? "longrope"
         : scaling == RopeScaling::llama3   ? "llama3"
                                            : "none";
}

const char* name_of(RopeLayout layout) {
  return layout == RopeLayout::interleaved ? "interleaved" : "half-split";
}

const char* name_of(PositionKind kind) {
  switch (kind) {
    case PositionKind::rotary:
      return "rotary";
    case PositionKind::none:
      return "none";
    case PositionKind::integer:
      return "integer";
    case PositionKind::binary:
      return "binary";
    default:
      return "sinusoidal";
  }
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

bool is_latent(const ModelConfig& c) {
  return c.attention == AttentionKind::latent;
}

ordered_json shape_json(const ModelConfig& c) {
  ordered_json json = {{"vocab_size", c.vocab_size},
                       {"hidden_size", c.hidden_size},
                       {"num_layers", c.num_layers},
                       {"num_heads", c.num_heads}};
  if (is_latent(c)) {
    json.update({{"q_lora_rank", c.q_lora_rank},
                 {"kv_lora_rank", c.kv_lora_rank},
                 {"qk_nope_head_dim", c.qk_nope_head_dim},
                 {"qk_rope_head_dim", c.qk_rope_head_dim},
                 {"v_head_dim", c.v_head_dim}});
  } else {
    json.update({{"num_kv_heads", c.num_kv_heads}, {"head_dim", c.head_dim}});
  }
  json.update({{"intermediate_size", c.intermediate_size},
               {"max_context", c.max_context},
               {"softmax_scale", c.softmax_scale},
               {"norm_epsilon", c.norm_epsilon}});
  if (is_latent(c)) json["latent_norm_epsilon"] = c.latent_norm_epsilon;
  json["tied_head"] = c.tied_head;
  json["position"] = name_of(c.position);
  if (c.position == PositionKind::rotary) {
    json["rope"] = {{"layout", name_of(c.rope.layout)},
                    {"theta", c.rope.theta},
                    {"scaling", name_of(c.rope.scaling)},
                    {"factor", c.rope.factor},
                    {"attention_factor", c.rope.attention_factor}};
  }
  return json;
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

/// The types that the rows of such a model can be kept in.
std::vector<DType> row_types(const ModelConfig& c) {
  if (is_latent(c)) return {DType::f32, DType::bf16, DType::f8_e4m3, DType::i8};
  return {DType::f32, DType::bf16};
}

/// What one token keeps in all layers.
std::int64_t cache_bytes(const ModelConfig& c, DType type) {
  return c.num_layers * row_layout(c, type).bytes();
}

/// Variants of the same heads and the numbers that a token keeps in each; MLA only of a model that has
/// latents.
std::vector<std::pair<std::string, std::int64_t>> variants(const ModelConfig& c, const CacheCensus& cache) {
  std::vector<std::pair<std::string, std::int64_t>> all{
      {"MQA", cache.mqa}, {fmt::format("GQA ({})", cache.gqa_groups), cache.gqa}, {"MHA", cache.mha}};
  if (is_latent(c)) all.insert(all.begin(), {"MLA", cache.mla});
  return all;
}

/// Bytes per token in bf16 rows, and how many times more than the model's own; the model's own in each type
/// of row.
ordered_json cache_json(const ModelConfig& c) {
  const CacheCensus cache = count_cache(c);
  ordered_json json, by_type;
  for (const DType type : row_types(c)) by_type[mla::name_of(type)] = cache_bytes(c, type);
  const auto add = [&](const std::string& name, std::int64_t values) {
    json[name] = {{"values_per_token", values},
                  {"bytes_per_token_bf16", 2 * values},
                  {"ratio", static_cast<double>(values) / static_cast<double>(cache.kept)}};
  };
  if (is_latent(c)) add("mla", cache.mla);
  add("mha", cache.mha);
  add(fmt::format("gqa{}", cache.gqa_groups), cache.gqa);
  add("mqa", cache.mqa);
  json["bytes_per_token"] = by_type;
  if (!is_latent(c)) return json;
  json["mla_bytes_per_token"] = by_type;
  json["mha_over_mla"] = static_cast<double>(cache.mha) / static_cast<double>(cache.mla);
  json["mha_over_latent_without_rotary_key"] =
      static_cast<double>(cache.mha) / static_cast<double>(cache.latent_only);
  return json;
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
                       {"attention", attention_name(c)},
                       {"parameters", {{"total", parameters.total}, {"active", parameters.active}}},
                       {"weight_bytes", nullptr},
                       {"shape", shape_json(c)}};
  if (checked.checkpoint) json["weight_bytes"] = checked.checkpoint->total_bytes();
  if (c.moe.num_experts > 0) json["moe"] = moe_json(c);
  json["cache"] = cache_json(c);
  json["next_token_layer_tensors"] = checked.not_used;
  json["unread_fields"] = c.unread_fields;
  return json;
}

std::string describe_attention(const ModelConfig& c) {
  if (!is_latent(c)) {
    return fmt::format(
        "shape          {} layers, hidden {}, {} heads of {}, {} kv heads\n"
        "attention      {}\n",
        c.num_layers, c.hidden_size, c.num_heads, c.head_dim, c.num_kv_heads, attention_name(c));
  }
  return fmt::format(
      "shape          {} layers, hidden {}, {} heads of {} + {} (rope), values {}\n"
      "latents        c_kv {}, queries {}\n",
      c.num_layers, c.hidden_size, c.num_heads, c.qk_nope_head_dim, c.qk_rope_head_dim, c.v_head_dim,
      c.kv_lora_rank, c.q_lora_rank > 0 ? fmt::format("{}", c.q_lora_rank) : "not compressed");
}

std::string describe_positions(const ModelConfig& c) {
  if (c.position != PositionKind::rotary) return fmt::format("positions      {}\n", name_of(c.position));
  return fmt::format("rope           {}, theta {}, scaling {}\n", name_of(c.rope.layout), c.rope.theta,
                     c.rope.scaling == RopeScaling::none
                         ? "none"
                         : fmt::format("{} by {}", name_of(c.rope.scaling), c.rope.factor));
}

std::string describe_shape(const ModelConfig& c) {
  std::string text = describe_attention(c) +
                     fmt::format("vocabulary     {}, context {}\n", c.vocab_size, c.max_context) +
                     describe_positions(c) + fmt::format("softmax scale  {:.7f}\n", c.softmax_scale);
  if (c.moe.num_experts > 0) {
    text +=
        fmt::format("experts        {} of {} + {} shared, width {}, {} gate, {} of {} groups, in {} layers\n",
                    c.moe.experts_per_token, c.moe.num_experts, c.moe.shared_experts, c.moe.intermediate_size,
                    c.moe.gate == GateKind::softmax ? "softmax" : "sigmoid", c.moe.groups_kept,
                    c.moe.num_groups, moe_layers(c));
  }
  return text;
}

std::string describe_cache(const ModelConfig& c) {
  const CacheCensus cache = count_cache(c);
  std::string text = "\ncache per token, all layers, bf16 rows\n";
  for (const auto& [name, values] : variants(c, cache)) {
    const double ratio = static_cast<double>(values) / static_cast<double>(cache.kept);
    text += fmt::format("  {:<8}{:>12} bytes  {:>6.1f}x\n", name, 2 * values, ratio);
  }
  if (is_latent(c)) {
    text += fmt::format(
        "MHA keeps {:.1f}x what MLA keeps, {:.1f}x what its latents take without the rotary key\n",
        static_cast<double>(cache.mha) / static_cast<double>(cache.mla),
        static_cast<double>(cache.mha) / static_cast<double>(cache.latent_only));
  }
  std::vector<std::string> types;
  for (const DType type : row_types(c))
    types.push_back(fmt::format("{} {}", mla::name_of(type), cache_bytes(c, type)));
  return text + fmt::format("{} by type of row: {}\n", attention_name(c), fmt::join(types, ", "));
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
  text += describe_shape(c) + describe_cache(c);
  if (!checked.not_used.empty()) {
    text += fmt::format("\nnot used (next-token prediction): {}\n", fmt::join(checked.not_used, ", "));
  }
  if (!c.unread_fields.empty())
    text += fmt::format("\nconfig fields not known: {}\n", fmt::join(c.unread_fields, ", "));
  say(text);
}

}  // namespace mla::app
