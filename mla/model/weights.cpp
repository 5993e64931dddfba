#include "mla/model/weights.h"

#include <charconv>
#include <cstring>
#include <set>
#include <string_view>

#include "mla/core/error.h"
#include "mla/kernels/leaf.h"

namespace mla {

DType dtype_of(StoredType type) {
  switch (type) {
    case StoredType::f32:
      return DType::f32;
    case StoredType::f16:
      return DType::f16;
    case StoredType::bf16:
      return DType::bf16;
    default:
      return DType::f8_e4m3;
  }
}

namespace {

/// Takes tensors out of a checkpoint by name and remembers which were taken.
class Binder {
 public:
  Binder(const ModelConfig& config, const Checkpoint& checkpoint)
      : config_(config), checkpoint_(checkpoint) {}

  bool has(const std::string& name) const { return checkpoint_.find(name) != nullptr; }

  /// A matrix in its stored type, with its block scales if it is fp8.
  Weight matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    const StoredTensor& stored = checkpoint_.tensor(
        name, {rows, cols}, {StoredType::f32, StoredType::f16, StoredType::bf16, StoredType::f8_e4m3});
    taken_.insert(name);
    Weight weight;
    weight.dtype = dtype_of(stored.type);
    weight.data = stored.data.data();
    weight.rows = rows;
    weight.cols = cols;
    if (weight.dtype == DType::f8_e4m3) add_scales(name, weight);
    return weight;
  }

  /// A vector as f32.
  std::vector<float> vector(const std::string& name, std::int64_t size) {
    const StoredTensor& stored =
        checkpoint_.tensor(name, {size}, {StoredType::f32, StoredType::f16, StoredType::bf16});
    taken_.insert(name);
    Weight row;
    row.dtype = dtype_of(stored.type);
    row.data = stored.data.data();
    row.rows = 1;
    row.cols = size;
    std::vector<float> values(static_cast<std::size_t>(size));
    read_row(row, 0, values.data());
    return values;
  }

  /// Marks `name` as known without using it.
  void skip(const std::string& name) { taken_.insert(name); }

  /// The tensors that nobody took: those of layers beyond the model's are returned, any other is an error.
  std::vector<std::string> rest() const {
    std::vector<std::string> next_token_layers;
    for (const std::string& name : checkpoint_.names()) {
      if (taken_.contains(name) || is_rope_buffer(name)) continue;
      require(layer_of(name) >= config_.num_layers,
              "{}: tensor '{}': found, but no part of a {} model with this config uses it",
              checkpoint_.file_of(name), name, config_.model_type);
      next_token_layers.push_back(name);
    }
    return next_token_layers;
  }

 private:
  void add_scales(const std::string& name, Weight& weight) {
    require(
        config_.fp8.rows > 0,
        "{}: tensor '{}': found F8_E4M3, but config.json has no quantization_config that gives its blocks",
        checkpoint_.file_of(name), name);
    const std::string scales = name + "_scale_inv";
    weight.block_rows = config_.fp8.rows;
    weight.block_cols = config_.fp8.cols;
    const std::int64_t down = (weight.rows + weight.block_rows - 1) / weight.block_rows;
    const std::int64_t across = (weight.cols + weight.block_cols - 1) / weight.block_cols;
    weight.scales = reinterpret_cast<const float*>(
        checkpoint_.tensor(scales, {down, across}, {StoredType::f32}).data.data());
    taken_.insert(scales);
  }

  /// Old checkpoints carry the rotary frequencies as buffers; they follow from the config.
  static bool is_rope_buffer(std::string_view name) { return name.ends_with(".rotary_emb.inv_freq"); }

  /// N of "model.layers.N.", or -1.
  static std::int64_t layer_of(std::string_view name) {
    constexpr std::string_view prefix = "model.layers.";
    if (!name.starts_with(prefix)) return -1;
    name.remove_prefix(prefix.size());
    std::int64_t layer = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    return error == std::errc{} && end != name.data() + name.size() && *end == '.' ? layer : -1;
  }

  const ModelConfig& config_;
  const Checkpoint& checkpoint_;
  std::set<std::string, std::less<>> taken_;
};

void bind_mla(const ModelConfig& c, const std::string& prefix, Binder& binder, LayerWeights& layer) {
  MlaWeights& w = layer.mla;
  const std::int64_t query_width = c.num_heads * c.qk_head_dim();
  if (c.q_lora_rank > 0) {
    w.q_a_proj = binder.matrix(prefix + "q_a_proj.weight", c.q_lora_rank, c.hidden_size);
    layer.q_a_norm = binder.vector(prefix + "q_a_layernorm.weight", c.q_lora_rank);
    w.q_a_norm = layer.q_a_norm;
    w.q_b_proj = binder.matrix(prefix + "q_b_proj.weight", query_width, c.q_lora_rank);
  } else {
    w.q_proj = binder.matrix(prefix + "q_proj.weight", query_width, c.hidden_size);
  }
  w.kv_a_proj = binder.matrix(prefix + "kv_a_proj_with_mqa.weight", c.latent_width(), c.hidden_size);
  layer.kv_a_norm = binder.vector(prefix + "kv_a_layernorm.weight", c.kv_lora_rank);
  w.kv_a_norm = layer.kv_a_norm;
  w.kv_b_proj = binder.matrix(prefix + "kv_b_proj.weight", c.num_heads * (c.qk_nope_head_dim + c.v_head_dim),
                              c.kv_lora_rank);
  w.o_proj = binder.matrix(prefix + "o_proj.weight", c.hidden_size, c.num_heads * c.v_head_dim);
}

HeadsWeights bind_heads(const ModelConfig& c, const std::string& prefix, Binder& binder) {
  const std::int64_t query_width = c.num_heads * c.head_dim, key_width = c.num_kv_heads * c.head_dim;
  HeadsWeights w;
  w.q_proj = binder.matrix(prefix + "q_proj.weight", query_width, c.hidden_size);
  w.k_proj = binder.matrix(prefix + "k_proj.weight", key_width, c.hidden_size);
  w.v_proj = binder.matrix(prefix + "v_proj.weight", key_width, c.hidden_size);
  w.o_proj = binder.matrix(prefix + "o_proj.weight", c.hidden_size, query_width);
  return w;
}

FeedForwardWeights bind_feed_forward(const ModelConfig& c, const std::string& prefix, std::int64_t width,
                                     Binder& binder) {
  FeedForwardWeights w;
  w.gate_proj = binder.matrix(prefix + "gate_proj.weight", width, c.hidden_size);
  w.up_proj = binder.matrix(prefix + "up_proj.weight", width, c.hidden_size);
  w.down_proj = binder.matrix(prefix + "down_proj.weight", c.hidden_size, width);
  return w;
}

MoeWeights bind_moe(const ModelConfig& c, const std::string& prefix, Binder& binder) {
  MoeWeights w;
  w.gate = binder.matrix(prefix + "gate.weight", c.moe.num_experts, c.hidden_size);
  if (c.moe.has_bias) w.bias = binder.vector(prefix + "gate.e_score_correction_bias", c.moe.num_experts);
  for (std::int64_t e = 0; e < c.moe.num_experts; ++e) {
    w.experts.push_back(
        bind_feed_forward(c, fmt::format("{}experts.{}.", prefix, e), c.moe.intermediate_size, binder));
  }
  if (c.moe.shared_experts > 0) {
    const std::int64_t width = c.moe.shared_experts * c.moe.intermediate_size;
    w.shared = bind_feed_forward(c, prefix + "shared_experts.", width, binder);
  }
  return w;
}

LayerWeights bind_layer(const ModelConfig& c, std::int64_t index, Binder& binder) {
  const std::string prefix = fmt::format("model.layers.{}.", index);
  LayerWeights layer;
  layer.input_norm = binder.vector(prefix + "input_layernorm.weight", c.hidden_size);
  if (c.attention == AttentionKind::latent) {
    bind_mla(c, prefix + "self_attn.", binder, layer);
  } else {
    layer.heads = bind_heads(c, prefix + "self_attn.", binder);
  }
  layer.post_attention_norm = binder.vector(prefix + "post_attention_layernorm.weight", c.hidden_size);
  layer.is_moe = c.layer_is_moe[index];
  if (layer.is_moe) {
    layer.moe = bind_moe(c, prefix + "mlp.", binder);
  } else {
    layer.feed_forward = bind_feed_forward(c, prefix + "mlp.", c.intermediate_size, binder);
  }
  return layer;
}

/// A checkpoint of a tied model may carry the head as a copy; then it must be one.
void bind_tied_head(const Checkpoint& checkpoint, Binder& binder) {
  const StoredTensor* copy = checkpoint.find("lm_head.weight");
  if (!copy) return;
  const StoredTensor* embedding = checkpoint.find("model.embed_tokens.weight");
  require(copy->type == embedding->type && copy->data.size() == embedding->data.size() &&
              std::memcmp(copy->data.data(), embedding->data.data(), copy->data.size()) == 0,
          "{}: tensor 'lm_head.weight': differs from the embedding, but config.json says tie_word_embeddings",
          checkpoint.file_of("lm_head.weight"));
  binder.skip("lm_head.weight");
}

}  // namespace

MlaShape mla_shape(const ModelConfig& c) {
  return {c.hidden_size,      c.num_heads,  c.q_lora_rank,   c.kv_lora_rank,       c.qk_nope_head_dim,
          c.qk_rope_head_dim, c.v_head_dim, c.softmax_scale, c.latent_norm_epsilon};
}

HeadsShape heads_shape(const ModelConfig& c) {
  return {c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.softmax_scale};
}

ModelWeights bind_weights(const ModelConfig& config, const Checkpoint& checkpoint) {
  Binder binder(config, checkpoint);
  ModelWeights weights;
  weights.embedding = binder.matrix("model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  for (std::int64_t i = 0; i < config.num_layers; ++i)
    weights.layers.push_back(bind_layer(config, i, binder));
  weights.final_norm = binder.vector("model.norm.weight", config.hidden_size);
  if (config.tied_head) {
    weights.head = weights.embedding;
    bind_tied_head(checkpoint, binder);
  } else {
    weights.head = binder.matrix("lm_head.weight", config.vocab_size, config.hidden_size);
  }
  weights.not_used = binder.rest();
  return weights;
}

}  // namespace mla
