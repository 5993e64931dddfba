#pragma once
#include <cstdint>

#include "mla/attention/mla.h"
#include "mla/train/block_attention.h"
#include "mla/train/layers.h"

namespace mla {

/// Multi-head latent attention, as MlaWeights.
struct TrainedMla {
  Trained q_proj;
  Trained q_a_proj, q_a_norm, q_b_proj;
  Trained kv_a_proj, kv_a_norm, kv_b_proj;
  Trained o_proj;

  Trained w_uk(const MlaShape& s, std::int64_t head) const;
  Trained w_uv(const MlaShape& s, std::int64_t head) const;
};

/// How the layer computes. Both forms have the same gradients: in the absorbed one they flow through W_UK
/// into the query and through W_UV behind the sum.
struct MlaTraining : BlockTraining {
  MlaForm form = MlaForm::decompress;  ///< decompress or absorb
};

/// What forward leaves for backward.
struct MlaTape {
  Buffer<float> query_latent;  // [tokens, d_c'], before its norm
  Buffer<float> queries;       // [tokens, n_h (d_n + d_r)], rotated
  Buffer<float> latents;       // [tokens, d_c + d_r]: c_kv before its norm, the rotated key
  Buffer<float> c_kv;          // [tokens, d_c] normed; explicit only
  Buffer<float>
      rows;  // what attention reads. explicit: [tokens, n_h (d_n + d_r + d_v)]; absorbed: [tokens, d_c + d_r]
  Buffer<float> absorbed;  // [tokens, n_h (d_c + d_r)]; absorbed only
  Buffer<float> context;   // [tokens, n_h d_c]; absorbed only
  Buffer<float> values;    // [tokens, n_h d_v]
  Buffer<float> lse;       // [tokens, n_h]
};

/// Memory that calls reuse.
struct MlaTrainingScratch {
  Buffer<float> normed;          // [tokens, d_c'] or [tokens, d_c]
  Buffer<float> expanded;        // [tokens, n_h (d_n + d_v)]
  Buffer<float> d_values;        // [tokens, n_h d_v]
  Buffer<float> d_context;       // [tokens, n_h d_c]
  Buffer<float> d_absorbed;      // [tokens, n_h (d_c + d_r)]
  Buffer<float> d_queries;       // as queries
  Buffer<float> d_rows;          // as rows
  Buffer<float> d_expanded;      // as expanded
  Buffer<float> d_c_kv;          // [tokens, d_c]
  Buffer<float> d_latents;       // as latents
  Buffer<float> d_query_latent;  // [tokens, d_c'], twice
};

/// out [tokens, d] = causal attention of each sequence of x [tokens, d] over itself: mla_forward without a
/// past, with a tape. (Chapter 3.3 and 3.6.)
void mla_taped(const MlaShape& shape, const TrainedMla& weights, const MlaTraining& how,
               MatrixView<const float> x, MlaTape& tape, MlaTrainingScratch& scratch, MatrixView<float> out);

/// Writes d_x from d_out; adds to the weights' gradients. The steps of mla_taped, last first.
void mla_backward(const MlaShape& shape, const TrainedMla& weights, const MlaTraining& how,
                  MatrixView<const float> x, MatrixView<const float> d_out, MlaTape& tape,
                  MlaTrainingScratch& scratch, MatrixView<float> d_x);

}  // namespace mla
