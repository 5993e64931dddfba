#pragma once
#include <cstdint>
#include <vector>

#include "mla/model/config.h"
#include "mla/train/feed_forward.h"
#include "mla/train/heads_layer.h"
#include "mla/train/mla_layer.h"
#include "mla/train/parameters.h"

namespace mla {

/// One layer's tensors, as LayerWeights.
struct TrainedLayer {
  Trained input_norm, post_attention_norm;
  TrainedMla mla;      ///< of latent attention
  TrainedHeads heads;  ///< of attention with key and value heads
  bool is_moe = false;
  TrainedFeedForward feed_forward;
  TrainedMoe moe;
};

/// A model's tensors, as ModelWeights.
struct TrainedTensors {
  Trained embedding;
  std::vector<TrainedLayer> layers;
  Trained final_norm;
  Trained head;  ///< the embedding itself if the head is tied
};

/// Names and shapes of a model's tensors, in the order of its layers, named as in a checkpoint.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);

/// Those tensors in `parameters`, which was made from parameter_specs(config).
TrainedTensors find_tensors(const ModelConfig& config, Parameters& parameters);

}  // namespace mla
