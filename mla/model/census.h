#pragma once
#include <cstdint>

#include "mla/model/config.h"

namespace mla {

/// Weights of a model, counted from its config (norms and biases included, block scales not).
struct ParameterCount {
  std::int64_t total = 0;
  std::int64_t active = 0;  ///< that one token touches: of the routed experts, only those chosen
};
ParameterCount count_parameters(const ModelConfig& config);

/// Numbers that one token keeps in the cache, over all layers, by attention variant of the same heads
/// (chapter 3.5.1).
struct CacheCensus {
  std::int64_t kept = 0;  ///< what this engine keeps: of the model's own variant
  std::int64_t mla = 0;   ///< layers (d_c + d_r); 0 for a model that has no latents
  std::int64_t latent_only =
      0;                        ///< layers d_c: the chapter's formula, which leaves the shared rotary key out
  std::int64_t mha = 0;         ///< layers n_h (d_n + d_v), or n_h 2 head_dim: keys and values of every head
  std::int64_t gqa = 0;         ///< the same of gqa_groups heads
  std::int64_t mqa = 0;         ///< the same of one head
  std::int64_t gqa_groups = 0;  ///< those of a GQA model; else 8, or n_h if the model has fewer
};
CacheCensus count_cache(const ModelConfig& config);

/// MLA, MHA, GQA or MQA.
const char* attention_name(const ModelConfig& config);

}  // namespace mla
