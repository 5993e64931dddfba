#pragma once
// Layers of attention with random weights, and their formulas in double: every head's keys and values written
// out, no cache, no tricks.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "mla/train/heads_layer.h"
#include "mla/train/mla_layer.h"
#include "support/gradients.h"
#include "support/matrix.h"

namespace mla::test {

struct LayerAnswer {
  Matrix out;   ///< [tokens][d]
  Matrix rows;  ///< [tokens][h_kv][k, v] or [tokens][c_kv, k_rope]: what each token leaves behind
};

using NamedTensors = std::vector<std::pair<std::string, Tensor*>>;

struct HeadsSizes {
  std::int64_t d, heads, kv_heads, head_dim;
  bool is_rotated;
};

/// MHA, GQA or MQA.
struct HeadsLayer {
  HeadsLayer(const HeadsSizes& sizes, Random& random);

  HeadsWeights weights() const;
  TrainedHeads trained();
  NamedTensors tensors();
  /// softmax(q k^T / sqrt(head_dim)) v of each head over its kv head, token by token.
  LayerAnswer formulas(const Matrix& x, std::int64_t first_position) const;

  HeadsShape shape;
  RopeSpec spec;
  Tensor q_proj, k_proj, v_proj, o_proj;
};

struct MlaSizes {
  std::int64_t d, heads, q_rank, d_c, d_n, d_r, d_v;
  RopeLayout layout;
};

struct MlaLayer {
  MlaLayer(const MlaSizes& sizes, Random& random);

  MlaWeights weights() const;
  TrainedMla trained();
  NamedTensors tensors();
  /// The DeepSeek-V2 paper's formulas 37 to 47 (appendix C), token by token and head by head.
  LayerAnswer formulas(const Matrix& x, std::int64_t first_position) const;

  MlaShape shape;
  RopeSpec spec;
  Tensor q_a_proj, q_a_norm;  // only with query compression
  Tensor q_proj;              // then q_b_proj
  Tensor kv_a_proj, kv_a_norm, kv_b_proj, o_proj;
};

}  // namespace mla::test
