#pragma once
#include <cstdint>

#include "mla/attention/backward.h"
#include "mla/cache/row_layout.h"
#include "mla/core/tensor.h"
#include "mla/position/rotary.h"

// What every kind of attention shares in training: whole sequences that attend to nothing but themselves.

namespace mla {

/// Sequences of one length, one behind another: token t of sequence i is row i * length + t of every matrix.
struct TokenBlock {
  std::int64_t sequences = 0;
  std::int64_t length = 0;
  std::int64_t tokens() const { return sequences * length; }
};

/// How a layer of attention computes.
struct BlockTraining {
  TokenBlock block;
  const Rotary* rotary = nullptr;        ///< of dim 0: nothing is turned
  const Rotary::Table* table = nullptr;  ///< of positions [0, length)
  DType compute = DType::f32;            ///< of products
};

/// Turns x [tokens, heads * width]: the rotary's dim values of each head from `offset` on, by the token's
/// position in its sequence.
void rotate_block(const BlockTraining& how, std::int64_t width, std::int64_t offset, MatrixView<float> x);
/// The gradient by what rotate_block read, from that by what it wrote, in place.
void rotate_block_back(const BlockTraining& how, std::int64_t width, std::int64_t offset,
                       MatrixView<float> d_x);

/// Attention of each sequence of a block over itself.
struct BlockAttention {
  TokenBlock block;
  AttentionShape shape;
  RowLayout layout;           ///< of rows, in f32
  MatrixView<float> queries;  ///< [tokens, h_q d_qk]
  MatrixView<float> rows;     ///< [tokens, layout.values()]
  MatrixView<float> out;      ///< [tokens, h_q d_v]
  float* lse;                 ///< [tokens, h_q]
};

/// Writes out and lse.
void attend_block(const BlockAttention& attention);
/// Writes the gradients by queries and rows from d_out, that by out.
void attend_block_backward(const BlockAttention& attention, MatrixView<const float> d_out,
                           MatrixView<float> d_queries, MatrixView<float> d_rows);

}  // namespace mla
