#pragma once
#include <span>

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

/// One of several feed-forwards that run side by side.
struct FeedForwardRun {
  const FeedForwardWeights* weights;
  MatrixView<const float> x;   ///< [tokens, d]
  MatrixView<float> gate, up;  ///< [tokens, width], working memory
  MatrixView<float> hidden;    ///< [tokens, width], silu(gate) * up; gate itself, unless gate is to be kept
  MatrixView<float> out;       ///< [tokens, d]
};

/// y = x W^T: matmul or panel_matmul.
using MatmulFunction = void (*)(MatrixView<const float> x, const Weight& weight, DType compute,
                                MatrixView<float> y);

/// All of `runs`. The threads share the outputs of all of them, block by block, so that many small ones keep
/// them as busy as a large one; each result has the bits that it has alone.
void feed_forward(std::span<const FeedForwardRun> runs, DType compute, MatmulFunction product = matmul);

}  // namespace mla
