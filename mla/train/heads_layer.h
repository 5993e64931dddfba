#pragma once
#include <cstdint>

#include "mla/attention/gqa.h"
#include "mla/train/block_attention.h"
#include "mla/train/layers.h"

namespace mla {

/// Attention with key and value heads, as HeadsWeights.
struct TrainedHeads {
  Trained q_proj, k_proj, v_proj, o_proj;
};

/// What forward leaves for backward.
struct HeadsTape {
  Buffer<float> queries;  // [tokens, n_h head_dim], rotated
  Buffer<float> rows;     // [tokens, h_kv 2 head_dim]: [k | v] per kv head, keys rotated
  Buffer<float> values;   // [tokens, n_h head_dim] what the heads found
  Buffer<float> lse;      // [tokens, n_h]
};

/// Memory that calls reuse.
struct HeadsTrainingScratch {
  Buffer<float> keys;        // [tokens, h_kv head_dim]; on the way back their gradients
  Buffer<float> new_values;  // [tokens, h_kv head_dim] of the tokens themselves; the same
  Buffer<float> d_values;    // as values
  Buffer<float> d_queries;   // as queries
  Buffer<float> d_rows;      // as rows
};

/// out [tokens, d] = causal attention of each sequence of x [tokens, d] over itself: gqa_forward without a
/// past, with a tape. (Chapter 3.1.)
void heads_taped(const HeadsShape& shape, const TrainedHeads& weights, const BlockTraining& how,
                 MatrixView<const float> x, HeadsTape& tape, HeadsTrainingScratch& scratch,
                 MatrixView<float> out);

/// Writes d_x from d_out; adds to the weights' gradients. The steps of heads_taped, last first.
void heads_backward(const HeadsShape& shape, const TrainedHeads& weights, const BlockTraining& how,
                    MatrixView<const float> x, MatrixView<const float> d_out, HeadsTape& tape,
                    HeadsTrainingScratch& scratch, MatrixView<float> d_x);

}  // namespace mla
