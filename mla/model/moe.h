#pragma once
#include <cstdint>
#include <vector>

#include "mla/core/tensor.h"
#include "mla/model/config.h"
#include "mla/model/feed_forward.h"

namespace mla {

/// A mixture of experts (DeepSeek-V2, section 2.2; DeepSeek-V3, section 2.1.2).
struct MoeWeights {
  Weight gate;              ///< [experts, d]      mlp.gate.weight
  std::vector<float> bias;  ///< [experts] or none mlp.gate.e_score_correction_bias: chooses, never weighs
  std::vector<FeedForwardWeights> experts;  ///< mlp.experts.N
  FeedForwardWeights shared;                ///< mlp.shared_experts; empty if the model has none
};

/// The experts of each token, in ascending order, and their weights: [tokens][experts_per_token].
struct Routing {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
};

/// The scores of one token's experts: what `gate` makes of their logits.
void gate_scores(GateKind gate, const float* logits, std::int64_t experts, float* scores);

/// Chooses experts from gate logits [tokens, experts]. Among equal scores the lower expert wins.
void route(const MoeConfig& config, const std::vector<float>& bias, MatrixView<const float> logits,
           Routing& routing);

/// Memory that calls reuse. The choices of all tokens lie grouped by expert, tokens in order.
struct MoeScratch {
  bool for_training = false;  ///< gates stay as they are before silu, hidden beside them; panel_matmul
  Buffer<float> logits;       // [tokens, experts]
  Routing routing;
  std::vector<std::int64_t> first;  // [experts + 1] an expert's first choice among the grouped ones
  std::vector<std::int64_t> place;  // [tokens * experts_per_token] of each choice in that order
  Buffer<float> in, gate, up,
      out;                    // of the grouped choices: [choices, d], [choices, width] twice, [choices, d]
  FeedForwardScratch shared;  // of the shared experts
  Buffer<float> shared_out;   // [tokens, d]
  Buffer<float> hidden, shared_hidden;  // [choices, width] and of the shared experts, in training
  std::vector<FeedForwardRun> runs;     // one per expert that was chosen, then the shared ones
};

/// out [tokens, d] = weighted sum of each token's experts, plus the shared experts. Tokens are grouped by
/// expert, and experts that nobody chose are not touched. The gate computes in f32 always, as the models were
/// trained.
void moe_forward(const MoeConfig& config, const MoeWeights& weights, MatrixView<const float> x, DType compute,
                 MoeScratch& scratch, MatrixView<float> out);

}  // namespace mla
