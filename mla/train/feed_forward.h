#pragma once
#include <span>
#include <vector>

#include "mla/model/moe.h"
#include "mla/train/layers.h"

namespace mla {

/// SwiGLU, as FeedForwardWeights.
struct TrainedFeedForward {
  Trained gate_proj, up_proj, down_proj;

  bool empty() const { return gate_proj.empty(); }
  FeedForwardWeights weights() const { return {gate_proj.weight(), up_proj.weight(), down_proj.weight()}; }
};

/// What forward leaves for backward.
struct FeedForwardTape {
  Buffer<float> gate, up;  // [tokens, width], before silu; backward turns them into their gradients
  Buffer<float> hidden;    // [tokens, width], silu(gate) * up
};

/// Memory that backward calls of feed-forwards and mixtures reuse.
struct FeedForwardBackwardScratch {
  Buffer<float> d_hidden;     // [tokens, width]; of a mixture: [choices, width]
  Buffer<float> d_out, d_in;  // of a mixture: [choices, d]
  Buffer<float> d_logits;     // of a mixture: [tokens, experts]
};

/// out = the feed-forward of x: feed_forward with a tape, but for the order of sums.
void feed_forward_taped(const TrainedFeedForward& weights, MatrixView<const float> x, DType compute,
                        FeedForwardTape& tape, MatrixView<float> out);

/// Writes d_x from d_out; adds to the weights' gradients. Uses the tape up.
void feed_forward_backward(const TrainedFeedForward& weights, MatrixView<const float> x,
                           MatrixView<const float> d_out, DType compute, FeedForwardTape& tape,
                           FeedForwardBackwardScratch& scratch, MatrixView<float> d_x);

/// One feed-forward on its way back.
struct FeedForwardBackwardRun {
  MatrixView<const float> x;       ///< [tokens, d]
  MatrixView<float> gate, up;      ///< [tokens, width], before silu; become their gradients
  MatrixView<const float> hidden;  ///< [tokens, width]
  MatrixView<const float> d_out;   ///< [tokens, d]
  MatrixView<float> d_hidden;      ///< [tokens, width], working memory
  MatrixView<float> d_x;           ///< [tokens, d]
  bool adds;                       ///< to d_x, instead of writing it
};
void feed_forward_backward(const TrainedFeedForward& weights, const FeedForwardBackwardRun& run,
                           DType compute);

/// A mixture of experts, as MoeWeights. The bias only chooses: it is moved by load, never by a gradient
/// (DeepSeek-V3, section 2.1.2).
struct TrainedMoe {
  Trained gate;
  Trained bias;  ///< empty if the model has none
  std::vector<TrainedFeedForward> experts;
  TrainedFeedForward shared;  ///< empty if the model has none

  MoeWeights weights() const;
};

/// What forward leaves for backward: all that MoeScratch holds.
struct MoeTape {
  MoeScratch forward;
};

/// out = the mixture of x: moe_forward with a tape, but for the order of sums. Adds to load[experts], if not
/// empty, how many tokens chose each expert.
void moe_taped(const MoeConfig& config, const TrainedMoe& weights, MatrixView<const float> x, DType compute,
               MoeTape& tape, MatrixView<float> out, std::span<std::int64_t> load);

/// Writes d_x from d_out; adds to the gradients of the gate (through the weights of the chosen experts: both
/// kinds of score, normalisation and scale), the experts and the shared ones. Experts that nobody chose are
/// not touched. The gate computes in f32 always. Uses the tape up.
void moe_backward(const MoeConfig& config, const TrainedMoe& weights, MatrixView<const float> x,
                  MatrixView<const float> d_out, DType compute, MoeTape& tape,
                  FeedForwardBackwardScratch& scratch, MatrixView<float> d_x);

/// Raises the bias of experts with less than the mean load by `rate` and lowers that of those with more
/// (DeepSeek-V3, section 2.1.2, "auxiliary-loss-free load balancing").
void move_bias(std::span<const std::int64_t> load, double rate, const Trained& bias);

}  // namespace mla
