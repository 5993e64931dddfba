#include "mla/model/config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/model/config_experts.h"
#include "mla/model/config_fields.h"
#include "mla/model/config_heads.h"
#include "mla/model/config_rope.h"

namespace mla {
namespace {

using nlohmann::json;

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
  AttentionKind attention = AttentionKind::latent;
};

constexpr Family families[] = {
    {"deepseek_v2", GateKind::softmax, true, false, 0.0, RopeLayout::interleaved, true},
    {"deepseek_v3", GateKind::sigmoid, true, false, 0.0, RopeLayout::interleaved, false},
    {"kimi_k2", GateKind::sigmoid, true, false, 0.0, RopeLayout::interleaved, false},
    {"glm4_moe_lite", GateKind::sigmoid, true, false, 0.0, RopeLayout::interleaved, false},
    {"minicpm3", GateKind::softmax, false, true, 10000.0, RopeLayout::half_split, true},
    {"llama", GateKind::softmax, false, false, 10000.0, RopeLayout::half_split, true, AttentionKind::heads},
};

const Family& family_of(JsonFields& fields) {
  const std::string name = fields.word(
      "model_type", {"deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", "minicpm3", "llama"});
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
  config.max_context = fields.integer("max_position_embeddings", 1, max_count);
  config.norm_epsilon = fields.number_above("rms_norm_eps", 0.0);
}

void read_latent_sizes(JsonFields& fields, ModelConfig& config) {
  if (!fields.is_written("q_lora_rank"))
    fields.refuse("q_lora_rank", "an integer, or null for plain queries");
  config.q_lora_rank = fields.has("q_lora_rank") ? fields.size("q_lora_rank") : 0;
  config.kv_lora_rank = fields.size("kv_lora_rank");
  config.qk_nope_head_dim = fields.size("qk_nope_head_dim");
  // 0 is no released model's: it is for comparing positions.
  const std::int64_t least = config.model_type == "deepseek_v3" ? 0 : 1;
  config.qk_rope_head_dim = fields.integer("qk_rope_head_dim", least, max_size);
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
}

/// Fields of latent attention that only repeat what others say.
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
  fields.must_be("position_encoding", "rotary");  // ours, of llama
  if (config.qk_rope_head_dim == 0) config.position = PositionKind::none;
  RopeFields rope = read_rope(fields, {"qk_rope_head_dim", family.rope_theta, false}, config.qk_rope_head_dim,
                              config.max_context);
  config.rope = std::move(rope.spec);
  const bool is_interleaved = family.layout == RopeLayout::interleaved;
  if (family.layout_is_fixed) fields.must_be("rope_interleave", is_interleaved);
  config.rope.layout =
      fields.flag("rope_interleave", is_interleaved) ? RopeLayout::interleaved : RopeLayout::half_split;
  config.softmax_scale = rope.softmax_factor / std::sqrt(static_cast<double>(config.qk_head_dim()));
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

/// Refuses a weight matrix that is too large; sums up the others.
class MatrixCheck {
 public:
  explicit MatrixCheck(const std::string& source) : source_(source) {}

  void add(const char* what, std::int64_t rows, std::int64_t cols, std::int64_t times) {
    std::int64_t count = 0;
    const bool fits = !__builtin_mul_overflow(rows, cols, &count) && count <= max_matrix;
    require(fits, "{}: {}: found a weight matrix of {} x {}, expected at most 2^40 values", source_, what,
            rows, cols);
    total_ += static_cast<double>(count) * static_cast<double>(times);
  }
  double total() const { return total_; }

 private:
  const std::string& source_;
  double total_ = 0.0;
};

void add_attention(const ModelConfig& c, MatrixCheck& matrices) {
  if (c.attention == AttentionKind::heads) {
    matrices.add("num_attention_heads", c.num_heads * c.head_dim, c.hidden_size, 2 * c.num_layers);
    return matrices.add("num_key_value_heads", c.num_kv_heads * c.head_dim, c.hidden_size, 2 * c.num_layers);
  }
  if (c.q_lora_rank) matrices.add("q_lora_rank", c.q_lora_rank, c.hidden_size, c.num_layers);
  matrices.add("num_attention_heads", c.num_heads * c.qk_head_dim(),
               c.q_lora_rank ? c.q_lora_rank : c.hidden_size, c.num_layers);
  matrices.add("kv_lora_rank", c.latent_width(), c.hidden_size, c.num_layers);
  const std::int64_t key_value = c.num_heads * (c.qk_nope_head_dim + c.v_head_dim);
  matrices.add("num_attention_heads", key_value, c.kv_lora_rank, c.num_layers);
  matrices.add("num_attention_heads", c.num_heads * c.v_head_dim, c.hidden_size, c.num_layers);
}

/// Refuses sizes whose products the engine could not hold: each weight matrix, all of them, and the cache (or
/// the keys and values of explicit attention) of the whole context.
void check_products(const ModelConfig& config, const std::string& source) {
  const MoeConfig& moe = config.moe;
  const std::int64_t d = config.hidden_size;
  const std::int64_t layers = config.num_layers;
  MatrixCheck matrices(source);
  matrices.add("vocab_size", config.vocab_size, d, 2);
  matrices.add("intermediate_size", config.intermediate_size, d, 3 * layers);
  add_attention(config, matrices);
  matrices.add("n_routed_experts", moe.num_experts, d, layers);
  matrices.add("moe_intermediate_size", moe.intermediate_size, d, 3 * layers * moe.num_experts);
  matrices.add("n_shared_experts", moe.shared_experts * moe.intermediate_size, d, 3 * layers);
  require(matrices.total() <= static_cast<double>(max_total),
          "{}: num_hidden_layers: found {:.3g} weights in all, expected at most "
          "2^50",
          source, matrices.total());

  const std::int64_t row = std::max({config.num_heads * (config.qk_head_dim() + config.v_head_dim),
                                     config.latent_width(), config.heads_width()});
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
  config.attention = family.attention;
  skip_harmless(fields);
  refuse_what_we_lack(fields);
  read_sizes(fields, config);
  if (family.attention == AttentionKind::latent) {
    read_latent_sizes(fields, config);
    check_repeated(fields, config);
    read_positions(fields, family, config);
  } else {
    read_heads(fields, config);
  }
  config.layer_is_moe.assign(static_cast<std::size_t>(config.num_layers), false);
  if (family.has_experts) read_experts(fields, family.gate, config);
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
