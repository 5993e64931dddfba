#pragma once
#include "mla/core/tensor.h"
#include "mla/kernels/matmul.h"

namespace mla {

/// SwiGLU (Shazeer 2020): down(silu(gate x) * up x). Checkpoint names: gate_proj, up_proj [width, d],
/// down_proj [d, width].
struct FeedForwardWeights {
  Weight gate_proj;
  Weight up_proj;
  Weight down_proj;
};

/// Memory that calls reuse: [tokens, width] each.
struct FeedForwardScratch {
  Buffer<float> gate, up;
};

/// out [tokens, d] = the feed-forward of x [tokens, d].
void feed_forward(const FeedForwardWeights& weights, MatrixView<const float> x, DType compute,
                  FeedForwardScratch& scratch, MatrixView<float> out);

}  // namespace mla
