#include "mla/model/config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/model/config_fields.h"
#include "mla/model/config_rope.h"

namespace mla {
namespace {

using nlohmann::json;

constexpr std::int64_t max_layers = std::int64_t{1} << 16;
constexpr std::int64_t max_matrix = std::int64_t{1} << 40;  // values of one weight matrix
constexpr std::int64_t max_total = std::int64_t{1}
                                   << 50;  // values of all weights, or of a cache of the whole context

/// What differs among the families beyond what config.json says. Defaults are transformers' for fields that
/// no release of a family varies; a field that releases vary has none and must be there.
struct Family {
  const char* model_type;
  GateKind gate;
  bool has_experts;
  bool tied_head;        // when tie_word_embeddings is absent
  double rope_theta;     // when rope_theta is absent; 0: it must be there
  RopeLayout layout;     // when rope_interleave is absent
  bool layout_is_fixed;  // rope_interleave may not say otherwise
};

constexpr Family families[] = {
    {"deepseek_v2", GateKind::softmax, true, false, 0.0, RopeLayout::interleaved, true},
    {"deepseek_v3", GateKind::sigmoid, true, false, 0.0, RopeLayout::interleaved, false},
    {"kimi_k2", GateKind::sigmoid, true, false, 0.0, RopeLayout::interleaved, false},
    {"glm4_moe_lite", GateKind::sigmoid, true, false, 0.0, RopeLayout::interleaved, false},
    {"minicpm3", GateKind::softmax, false, true, 10000.0, RopeLayout::half_split, true},
};

const Family& family_of(JsonFields& fields) {
  const std::string name =
      fields.word("model_type", {"deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", "minicpm3"});
  return *std::ranges::find_if(families, [&](const Family& family) { return name == family.model_type; });
}

/// Fields that change nothing here: how it was trained, stored, split over machines, or what other code
/// reads.
void skip_harmless(JsonFields& fields) {
  fields.skip({"_name_or_path",
               "architectures",
               "auto_map",
               "torch_dtype",
               "dtype",
               "transformers_version",
               "initializer_range",
               "use_cache",
               "aux_loss_alpha",
               "router_aux_loss_coef",
               "seq_aux",
               "ep_size",
               "num_nextn_predict_layers",
               "attention_dropout",
               "output_router_logits",
               "output_attentions",
               "output_hidden_states",
               "return_dict",
               "pad_token_id",
               "sep_token_id",
               "model_max_length",
               "gradient_checkpointing",
               "_attn_implementation",
               "max_window_layers"});
}

/// Fields that ask for what this engine does not do, unless they hold what every release holds.
void refuse_what_we_lack(JsonFields& fields) {
  fields.must_be("hidden_act", "silu");
  for (const char* name : {"attention_bias", "mlp_bias", "use_qk_norm", "qk_layernorm"})
    fields.must_be(name, false);
  for (const char* name : {"attn_logit_softcapping", "final_logit_softcapping", "index_topk", "clip_qkv"}) {
    if (fields.has(name)) fields.refuse(name, "null");
  }
  fields.must_be("pretraining_tp", 1);
  const bool has_window = fields.has("sliding_window");
  if (fields.flag("use_sliding_window", true) && has_window) {
    fields.refuse("sliding_window", "null: this engine attends to the whole context");
  }
}

void read_sizes(JsonFields& fields, ModelConfig& config) {
  config.vocab_size = fields.integer("vocab_size", 1, max_count);
  config.hidden_size = fields.size("hidden_size");
  config.intermediate_size = fields.size("intermediate_size");
  config.num_layers = fields.integer("num_hidden_layers", 1, max_layers);
  config.num_heads = fields.size("num_attention_heads");
  if (!fields.is_written("q_lora_rank"))
    fields.refuse("q_lora_rank", "an integer, or null for plain queries");
  config.q_lora_rank = fields.has("q_lora_rank") ? fields.size("q_lora_rank") : 0;
  config.kv_lora_rank = fields.size("kv_lora_rank");
  config.qk_nope_head_dim = fields.size("qk_nope_head_dim");
  config.qk_rope_head_dim = fields.size("qk_rope_head_dim");
  if (config.model_type == "minicpm3" && !fields.has("v_head_dim")) {
    if (config.hidden_size % config.num_heads != 0) {
      fields.refuse(
          "num_attention_heads",
          fmt::format("a divisor of hidden_size {}, as v_head_dim is not given", config.hidden_size));
    }
    config.v_head_dim = config.hidden_size / config.num_heads;
  } else {
    config.v_head_dim = fields.size("v_head_dim");
  }
  config.max_context = fields.integer("max_position_embeddings", 1, max_count);
  config.norm_epsilon = fields.number_above("rms_norm_eps", 0.0);
}

/// Fields that only repeat what others say.
void check_repeated(JsonFields& fields, const ModelConfig& config) {
  const json* heads = fields.find("num_key_value_heads");
  if (heads && *heads != config.num_heads) {
    fields.refuse("num_key_value_heads",
                  fmt::format("num_attention_heads = {}: latent attention has no key heads of "
                              "its own",
                              config.num_heads));
  }
  fields.must_be("qk_head_dim", config.qk_head_dim());
  const json* dim = fields.find("head_dim");
  if (dim && *dim != config.qk_rope_head_dim && *dim != config.qk_head_dim()) {
    fields.refuse("head_dim", fmt::format("qk_rope_head_dim = {} or qk_nope_head_dim + qk_rope_head_dim = {}",
                                          config.qk_rope_head_dim, config.qk_head_dim()));
  }
}

void read_positions(JsonFields& fields, const Family& family, ModelConfig& config) {
  RopeFields rope = read_rope(fields, config.qk_rope_head_dim, config.max_context, family.rope_theta);
  config.rope = std::move(rope.spec);
  const bool is_interleaved = family.layout == RopeLayout::interleaved;
  if (family.layout_is_fixed) fields.must_be("rope_interleave", is_interleaved);
  config.rope.layout =
      fields.flag("rope_interleave", is_interleaved) ? RopeLayout::interleaved : RopeLayout::half_split;
  config.softmax_scale = rope.softmax_factor / std::sqrt(static_cast<double>(config.qk_head_dim()));
}

/// DeepSeek-V2's gate. norm_topk_prob true is refused: transformers ignores it and DeepSeek's own code then
/// leaves out the scale, so no answer would be the right one.
void read_softmax_gate(JsonFields& fields, MoeConfig& moe) {
  fields.must_be("scoring_func", "softmax");
  fields.must_be("norm_topk_prob", false);
  const bool has_groups =
      fields.word("topk_method", {"greedy", "group_limited_greedy"}) == "group_limited_greedy";
  if (has_groups) moe.group_rank = GroupRank::best;
  fields.skip({"n_group", "topk_group"});  // greedy looks at no groups
}

/// DeepSeek-V3's gate.
void read_sigmoid_gate(JsonFields& fields, MoeConfig& moe) {
  fields.must_be("scoring_func", "sigmoid");
  fields.must_be("topk_method", "noaux_tc");
  fields.need("norm_topk_prob", "true or false");
  moe.normalise = fields.flag("norm_topk_prob", false);
  moe.has_bias = true;
  moe.group_rank = GroupRank::best_two;
}

void read_groups(JsonFields& fields, MoeConfig& moe) {
  moe.num_groups = fields.size("n_group");
  if (moe.num_experts % moe.num_groups != 0) {
    fields.refuse("n_group", fmt::format("a divisor of n_routed_experts {}", moe.num_experts));
  }
  moe.groups_kept = fields.integer("topk_group", 1, moe.num_groups);
  const std::int64_t group_size = moe.num_experts / moe.num_groups;
  if (moe.num_groups == 1) {
    moe.group_rank = GroupRank::none;
  } else if (moe.group_rank == GroupRank::best_two && group_size < 2) {
    fields.refuse("n_group",
                  fmt::format("at most {}: a group is ranked by its best two experts", moe.num_experts / 2));
  }
  if (moe.experts_per_token > moe.groups_kept * group_size) {
    fields.refuse("num_experts_per_tok",
                  fmt::format("at most {}, the experts of the topk_group = {} groups kept",
                              moe.groups_kept * group_size, moe.groups_kept));
  }
}

/// Which layers have experts: mlp_layer_types lists them; first_k_dense_replace and moe_layer_freq count
/// them. Both may be given if they agree.
std::vector<bool> read_layer_kinds(JsonFields& fields, std::int64_t num_layers) {
  std::vector<bool> counted, listed;
  if (!fields.has("mlp_layer_types") || fields.has("first_k_dense_replace")) {
    const std::int64_t first = fields.integer("first_k_dense_replace", 0, max_layers);
    const std::int64_t every = fields.has("moe_layer_freq") ? fields.size("moe_layer_freq") : 1;
    for (std::int64_t i = 0; i < num_layers; ++i) counted.push_back(i >= first && i % every == 0);
  }
  fields.skip({"moe_layer_freq"});
  const json* types = fields.find("mlp_layer_types");
  if (!types) return counted;
  const std::string expected =
      fmt::format("a list of num_hidden_layers = {} times dense or sparse", num_layers);
  if (!types->is_array() || static_cast<std::int64_t>(types->size()) != num_layers) {
    fields.refuse("mlp_layer_types", expected);
  }
  for (const json& type : *types) {
    if (type != "dense" && type != "sparse") fields.refuse("mlp_layer_types", expected);
    listed.push_back(type == "sparse");
  }
  if (!counted.empty() && counted != listed)
    fields.refuse("mlp_layer_types", "the same as first_k_dense_replace says");
  return listed;
}

void read_experts(JsonFields& fields, const Family& family, ModelConfig& config) {
  config.layer_is_moe.assign(static_cast<std::size_t>(config.num_layers), false);
  if (!family.has_experts) return;
  if (!fields.has("n_routed_experts")) {  // dense, as DeepSeek's own code takes it
    fields.skip({"n_shared_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace",
                 "moe_layer_freq", "mlp_layer_types", "n_group", "topk_group", "topk_method", "scoring_func",
                 "norm_topk_prob", "routed_scaling_factor"});
    return;
  }
  MoeConfig& moe = config.moe;
  moe.num_experts = fields.size("n_routed_experts");
  moe.experts_per_token = fields.integer("num_experts_per_tok", 1, moe.num_experts);
  if (!fields.is_written("n_shared_experts"))
    fields.refuse("n_shared_experts", "an integer, or null for none");
  moe.shared_experts = fields.has("n_shared_experts") ? fields.integer("n_shared_experts", 0, max_size) : 0;
  moe.intermediate_size = fields.size("moe_intermediate_size");
  moe.scale = fields.number_above("routed_scaling_factor", 0.0);
  moe.gate = family.gate;
  if (moe.gate == GateKind::softmax) read_softmax_gate(fields, moe);
  if (moe.gate == GateKind::sigmoid) read_sigmoid_gate(fields, moe);
  if (moe.group_rank != GroupRank::none) read_groups(fields, moe);
  config.layer_is_moe = read_layer_kinds(fields, config.num_layers);
}

/// MiniCPM3's scales. A null scale_depth or dim_model_base means none, as in transformers.
void read_scales(JsonFields& fields, ModelConfig& config) {
  if (config.model_type != "minicpm3") {
    for (const char* name : {"scale_emb", "scale_depth", "dim_model_base"}) {
      if (fields.has(name)) fields.refuse(name, "no such field for " + config.model_type);
    }
    return;
  }
  config.embedding_scale = fields.number_above("scale_emb", 0.0);
  for (const char* name : {"scale_depth", "dim_model_base"}) {
    if (!fields.is_written(name)) fields.refuse(name, "a number, or null for none");
  }
  if (fields.has("scale_depth")) {
    config.residual_scale =
        fields.number_above("scale_depth", 0.0) / std::sqrt(static_cast<double>(config.num_layers));
  }
  if (fields.has("dim_model_base")) {
    config.logit_scale =
        static_cast<double>(fields.size("dim_model_base")) / static_cast<double>(config.hidden_size);
  }
}

void read_ids(JsonFields& fields, ModelConfig& config) {
  const auto is_id = [&](const json& value) { return is_integer(value, 0, config.vocab_size - 1); };
  const std::string expected = fmt::format("ids below vocab_size = {}", config.vocab_size);
  if (const json* bos = fields.find("bos_token_id")) {
    if (!is_id(*bos)) fields.refuse("bos_token_id", expected);
    config.bos_id = bos->get<std::int64_t>();
  }
  if (const json* eos = fields.find("eos_token_id")) {
    const json list = eos->is_array() ? *eos : json::array({*eos});
    for (const json& id : list) {
      if (!is_id(id)) fields.refuse("eos_token_id", expected);
      config.eos_ids.push_back(id.get<std::int64_t>());
    }
  }
}

/// Which modules were left as they are is for the tensors to say: one is quantised if it has a
/// weight_scale_inv.
void read_quantization(JsonFields& config_fields, ModelConfig& config) {
  const json* found = config_fields.find("quantization_config");
  if (!found) return;
  JsonFields fields(*found, config_fields.source(), "quantization_config.");
  fields.word("quant_method", {"fp8"});
  fields.must_be("fmt", "e4m3");
  fields.must_be("activation_scheme", "dynamic");
  fields.must_be("expert_dtype", "fp8");
  if (fields.has("scale_fmt"))
    fields.word("scale_fmt", {"float", "ue8m0"});  // ue8m0: f32 that are powers of two
  const char* expected = "two integers above 0: rows and columns of a block";
  const json& sides = fields.need("weight_block_size", expected);
  const bool is_pair =
      sides.is_array() && sides.size() == 2 &&
      std::ranges::all_of(sides, [](const json& side) { return is_integer(side, 1, max_size); });
  if (!is_pair) fields.refuse("weight_block_size", expected);
  config.fp8 = {sides[0].get<std::int64_t>(), sides[1].get<std::int64_t>()};
  fields.skip({"dequantize", "modules_to_not_convert", "modules_to_convert", "ignored_layers"});
  fields.refuse_unread();
}

/// Refuses sizes whose products the engine could not hold: each weight matrix, all of them, and the cache (or
/// the keys and values of explicit attention) of the whole context.
void check_products(const ModelConfig& config, const std::string& source) {
  double total = 0.0;
  const auto matrix = [&](const char* what, std::int64_t rows, std::int64_t cols, std::int64_t times) {
    std::int64_t count = 0;
    const bool fits = !__builtin_mul_overflow(rows, cols, &count) && count <= max_matrix;
    require(fits, "{}: {}: found a weight matrix of {} x {}, expected at most 2^40 values", source, what,
            rows, cols);
    total += static_cast<double>(count) * static_cast<double>(times);
  };
  const MoeConfig& moe = config.moe;
  const std::int64_t d = config.hidden_size;
  const std::int64_t layers = config.num_layers;
  matrix("vocab_size", config.vocab_size, d, 2);
  matrix("intermediate_size", config.intermediate_size, d, 3 * layers);
  if (config.q_lora_rank) matrix("q_lora_rank", config.q_lora_rank, d, layers);
  matrix("num_attention_heads", config.num_heads * config.qk_head_dim(),
         config.q_lora_rank ? config.q_lora_rank : d, layers);
  matrix("kv_lora_rank", config.latent_width(), d, layers);
  const std::int64_t key_value = config.num_heads * (config.qk_nope_head_dim + config.v_head_dim);
  matrix("num_attention_heads", key_value, config.kv_lora_rank, layers);
  matrix("num_attention_heads", config.num_heads * config.v_head_dim, d, layers);
  matrix("n_routed_experts", moe.num_experts, d, layers);
  matrix("moe_intermediate_size", moe.intermediate_size, d, 3 * layers * moe.num_experts);
  matrix("n_shared_experts", moe.shared_experts * moe.intermediate_size, d, 3 * layers);
  require(total <= static_cast<double>(max_total),
          "{}: num_hidden_layers: found {:.3g} weights in all, expected at most "
          "2^50",
          source, total);

  const std::int64_t row =
      std::max(config.num_heads * (config.qk_head_dim() + config.v_head_dim), config.latent_width());
  const double cache =
      static_cast<double>(config.max_context) * static_cast<double>(row) * static_cast<double>(layers);
  require(cache <= static_cast<double>(max_total),
          "{}: max_position_embeddings: found {}, expected a context whose keys "
          "and values are at most 2^50 numbers, not {:.3g}",
          source, config.max_context, cache);
}

}  // namespace

ModelConfig parse_config(std::string_view text, const std::string& source) {
  const json root = parse_json(text, source);
  JsonFields fields(root, source);
  ModelConfig config;
  const Family& family = family_of(fields);
  config.model_type = family.model_type;
  skip_harmless(fields);
  refuse_what_we_lack(fields);
  read_sizes(fields, config);
  check_repeated(fields, config);
  read_positions(fields, family, config);
  read_experts(fields, family, config);
  read_scales(fields, config);
  config.tied_head = fields.flag("tie_word_embeddings", family.tied_head);
  read_ids(fields, config);
  read_quantization(fields, config);
  check_products(config, source);
  config.unread_fields = fields.unread();
  return config;
}

ModelConfig read_config(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "config.json";
  return parse_config(read_text(path), path.string());
}

}  // namespace mla
