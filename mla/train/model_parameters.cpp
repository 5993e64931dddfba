#include "mla/train/model_parameters.h"

#include <fmt/format.h>

#include <functional>
#include <string>

namespace mla {
namespace {

using Shape = std::vector<std::int64_t>;

/// Walks through a model's tensors: what `tensor` gives for a name and a shape is where that tensor lies.
class Walk {
 public:
  using Tensor = std::function<Trained(const std::string& name, Shape shape)>;
  Walk(const ModelConfig& config, Tensor tensor) : c_(config), tensor_(std::move(tensor)) {}

  TrainedTensors all() const {
    TrainedTensors t;
    t.embedding = tensor_("model.embed_tokens.weight", {c_.vocab_size, c_.hidden_size});
    for (std::int64_t i = 0; i < c_.num_layers; ++i) t.layers.push_back(layer(i));
    t.final_norm = tensor_("model.norm.weight", {c_.hidden_size});
    t.head = c_.tied_head ? t.embedding : tensor_("lm_head.weight", {c_.vocab_size, c_.hidden_size});
    return t;
  }

 private:
  TrainedLayer layer(std::int64_t index) const {
    const std::string prefix = fmt::format("model.layers.{}.", index);
    TrainedLayer l;
    l.input_norm = tensor_(prefix + "input_layernorm.weight", {c_.hidden_size});
    if (c_.attention == AttentionKind::heads)
      l.heads = heads(prefix + "self_attn.");
    else
      l.mla = mla(prefix + "self_attn.");
    l.post_attention_norm = tensor_(prefix + "post_attention_layernorm.weight", {c_.hidden_size});
    l.is_moe = c_.layer_is_moe[index];
    if (l.is_moe)
      l.moe = moe(prefix + "mlp.");
    else
      l.feed_forward = feed_forward(prefix + "mlp.", c_.intermediate_size);
    return l;
  }

  TrainedMla mla(const std::string& prefix) const {
    const std::int64_t query_width = c_.num_heads * c_.qk_head_dim();
    TrainedMla w;
    if (c_.q_lora_rank > 0) {
      w.q_a_proj = tensor_(prefix + "q_a_proj.weight", {c_.q_lora_rank, c_.hidden_size});
      w.q_a_norm = tensor_(prefix + "q_a_layernorm.weight", {c_.q_lora_rank});
      w.q_b_proj = tensor_(prefix + "q_b_proj.weight", {query_width, c_.q_lora_rank});
    } else {
      w.q_proj = tensor_(prefix + "q_proj.weight", {query_width, c_.hidden_size});
    }
    w.kv_a_proj = tensor_(prefix + "kv_a_proj_with_mqa.weight", {c_.latent_width(), c_.hidden_size});
    w.kv_a_norm = tensor_(prefix + "kv_a_layernorm.weight", {c_.kv_lora_rank});
    w.kv_b_proj = tensor_(prefix + "kv_b_proj.weight",
                          {c_.num_heads * (c_.qk_nope_head_dim + c_.v_head_dim), c_.kv_lora_rank});
    w.o_proj = tensor_(prefix + "o_proj.weight", {c_.hidden_size, c_.num_heads * c_.v_head_dim});
    return w;
  }

  TrainedHeads heads(const std::string& prefix) const {
    const std::int64_t query_width = c_.num_heads * c_.head_dim, key_width = c_.num_kv_heads * c_.head_dim;
    return {tensor_(prefix + "q_proj.weight", {query_width, c_.hidden_size}),
            tensor_(prefix + "k_proj.weight", {key_width, c_.hidden_size}),
            tensor_(prefix + "v_proj.weight", {key_width, c_.hidden_size}),
            tensor_(prefix + "o_proj.weight", {c_.hidden_size, query_width})};
  }

  TrainedFeedForward feed_forward(const std::string& prefix, std::int64_t width) const {
    return {tensor_(prefix + "gate_proj.weight", {width, c_.hidden_size}),
            tensor_(prefix + "up_proj.weight", {width, c_.hidden_size}),
            tensor_(prefix + "down_proj.weight", {c_.hidden_size, width})};
  }

  TrainedMoe moe(const std::string& prefix) const {
    TrainedMoe w;
    w.gate = tensor_(prefix + "gate.weight", {c_.moe.num_experts, c_.hidden_size});
    if (c_.moe.has_bias) w.bias = tensor_(prefix + "gate.e_score_correction_bias", {c_.moe.num_experts});
    for (std::int64_t e = 0; e < c_.moe.num_experts; ++e)
      w.experts.push_back(feed_forward(fmt::format("{}experts.{}.", prefix, e), c_.moe.intermediate_size));
    if (c_.moe.shared_experts > 0)
      w.shared = feed_forward(prefix + "shared_experts.", c_.moe.shared_experts * c_.moe.intermediate_size);
    return w;
  }

  const ModelConfig& c_;
  Tensor tensor_;
};

}  // namespace

std::vector<ParameterSpec> parameter_specs(const ModelConfig& config) {
  std::vector<ParameterSpec> specs;
  Walk(config, [&](const std::string& name, Shape shape) {
    specs.push_back({name, std::move(shape)});
    return Trained{};
  }).all();
  return specs;
}

TrainedTensors find_tensors(const ModelConfig& config, Parameters& parameters) {
  return Walk(config, [&](const std::string& name, const Shape&) { return parameters.at(name); }).all();
}

}  // namespace mla
