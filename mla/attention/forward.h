#pragma once
#include <span>

#include "mla/attention/head_tiles.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// One sequence of a batch in training.
struct AttentionForward {
  QueryView queries;
  const float* rows;  ///< [length][row_stride]: keys and values
  std::int64_t length;
  float* out;  ///< [tokens][h_q][d_v] written
  float* lse;  ///< [tokens][h_q] written
};

/// What `attend` computes, over dense rows of f32 and for many queries of each head: blocks of them share a
/// tile of keys (Dao 2023, "FlashAttention-2", algorithm 1), whereas `attend` is made for few. A query that
/// sees no row gets 0 and lse +inf. Throws Error for a shape that is not one. `leaf`: the instruction set.
///
/// All arithmetic is f32. The bits depend neither on threads nor on the other sequences. Sequences times
/// query heads are shared out to the threads.
void attend_forward(const AttentionShape& shape, const RowShape& rows,
                    std::span<const AttentionForward> sequences, const LeafKernels& leaf = leaf_kernels());

}  // namespace mla
