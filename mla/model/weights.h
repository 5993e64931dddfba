#pragma once
#include <string>
#include <vector>

#include "mla/attention/gqa.h"
#include "mla/attention/mla.h"
#include "mla/model/checkpoint.h"
#include "mla/model/config.h"
#include "mla/model/moe.h"

namespace mla {

/// One layer's weights. The large ones are views of the checkpoint; norms and biases are small and held as
/// f32.
struct LayerWeights {
  std::vector<float> input_norm;           ///< [d]     input_layernorm
  MlaWeights mla;                          ///<         self_attn, of a model of latent attention
  std::vector<float> q_a_norm;             ///< [d_c']  what mla.q_a_norm views
  std::vector<float> kv_a_norm;            ///< [d_c]   what mla.kv_a_norm views
  HeadsWeights heads;                      ///<         self_attn, of a model with key and value heads
  std::vector<float> post_attention_norm;  ///< [d]     post_attention_layernorm
  bool is_moe = false;
  FeedForwardWeights feed_forward;  ///< mlp, of a dense layer
  MoeWeights moe;                   ///< mlp, of a mixture of experts
};

struct ModelWeights {
  Weight embedding;                  ///< [vocab, d]  model.embed_tokens
  std::vector<LayerWeights> layers;  ///<             model.layers.N
  std::vector<float> final_norm;     ///< [d]         model.norm
  Weight head;                       ///< [vocab, d]  lm_head; the embedding itself if the head is tied
  std::vector<std::string>
      not_used;  ///< tensors of next-token-prediction layers, which plain inference ignores
};

/// What the config says of its attention layers; sizes of the other kind of attention are 0.
MlaShape mla_shape(const ModelConfig& config);
HeadsShape heads_shape(const ModelConfig& config);

/// The element type of a stored weight. REQUIRES f32, f16, bf16 or fp8.
DType dtype_of(StoredType type);

/// Finds every tensor that `config` asks for and checks its shape and type. Throws Error naming the
/// checkpoint and the tensor that is missing, misshapen or of a type that can't be a weight, or that no part
/// of the model asks for.
ModelWeights bind_weights(const ModelConfig& config, const Checkpoint& checkpoint);

}  // namespace mla
