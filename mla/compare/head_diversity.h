#pragma once
#include <cstdint>
#include <vector>

#include "mla/attention/shape.h"
#include "mla/core/tensor.h"

namespace mla {

/// What the heads of one layer saw of some sequences: the inputs of its attention.
struct HeadsSeen {
  AttentionShape shape;
  std::int64_t length = 0;          ///< of each sequence
  MatrixView<const float> queries;  ///< [sequences * length, h_q d_qk], rotated
  MatrixView<const float> rows;     ///< [sequences * length, .]: keys and values, or latents
  std::int64_t key_stride = 0;      ///< floats from one kv head's key to the next one's in a row
};

/// How different the heads of one layer are. (Chapter 3.5.2.)
struct HeadDiversity {
  /// Mean over all pairs of heads and all queries but each sequence's first (which sees itself alone) of the
  /// Jensen-Shannon distance between the two heads' attention maps: the root of the mean of their divergences
  /// (in bits) from their average. 0: all heads look at the same tokens; 1: no two at a common one.
  double map_distance = 0;
  /// Effective rank of the keys of all heads side by side [tokens, h_q d_qk], each query head with the key it
  /// reads, columns centred: (sum of eigenvalues)^2 / sum of squared eigenvalues of their covariance. It
  /// counts the directions that keys vary in, if all vary alike; heads that share a key add nothing.
  double key_rank = 0;
  std::vector<double> distances;  ///< [h_q][h_q] of each pair of heads
};

/// Throws Error unless the matrices fit the shape and the sequences have at least two tokens.
HeadDiversity head_diversity(const HeadsSeen& seen);

}  // namespace mla
