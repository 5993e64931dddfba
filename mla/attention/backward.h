#pragma once
#include <cstdint>
#include <span>

#include "mla/attention/head_tiles.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// One sequence of a batch whose attention is differentiated. Outputs and gradients by them lie as `attend`
/// writes them.
struct AttentionGradient {
  QueryView queries;
  const float* rows;  ///< [length][row_stride]: the keys and values that forward attended to, in f32
  std::int64_t length;
  const float* out;    ///< [tokens][h_q][d_v] forward's
  const float* lse;    ///< [tokens][h_q] forward's
  const float* d_out;  ///< [tokens][h_q][d_v]
  float* d_queries;    ///< as queries lie; written
  float* d_rows;       ///< [length][row_stride]; added to
};

/// The gradient of `attend` by queries and rows of each sequence (Dao 2023, "FlashAttention-2", algorithm 2):
/// weights are computed again from lse, a tile at a time, so that no score matrix exists. A query that sees
/// no row (lse +inf) gets gradient 0 and adds none; what lies between the queries and between the heads of a
/// row is left alone. No two sequences share d_queries or d_rows. Throws Error for a shape that is not one.
/// `leaf`: the instruction set to use.
///
/// All arithmetic is f32. The bits depend neither on threads nor on the other sequences. Work is shared out
/// as sequences times kv heads, and where more than eight query heads share a kv head, eight at a time: each
/// further eight sums into [length][d_qk + d_v] floats of its own, added in order. So one long sequence of
/// MQA with h heads keeps at most ceil(h / 8) threads busy.
void attend_backward(const AttentionShape& shape, const RowShape& rows,
                     std::span<const AttentionGradient> sequences, const LeafKernels& leaf = leaf_kernels());

}  // namespace mla
