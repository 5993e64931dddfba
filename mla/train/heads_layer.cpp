#include "mla/train/heads_layer.h"

#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/matmul.h"

namespace mla {
namespace {

/// The call's matrices, by name: views of tape and scratch.
struct Layer {
  const HeadsShape& s;
  const TrainedHeads& w;
  const BlockTraining& how;
  HeadsTape& tape;
  HeadsTrainingScratch& scratch;

  std::int64_t query_width() const { return s.num_heads * s.head_dim; }
  std::int64_t key_width() const { return s.num_kv_heads * s.head_dim; }
  MatrixView<float> in(Buffer<float>& buffer, std::int64_t cols) const {
    return matrix_in(buffer, how.block.tokens(), cols);
  }

  MatrixView<float> queries() const { return in(tape.queries, query_width()); }
  MatrixView<float> rows() const { return in(tape.rows, 2 * key_width()); }
  MatrixView<float> values() const { return in(tape.values, query_width()); }

  AttentionShape attention() const {
    return {s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim, static_cast<float>(s.softmax_scale), true};
  }
  BlockAttention over_itself() const {
    const RowLayout layout = RowLayout::heads(s.num_kv_heads, s.head_dim, s.head_dim, DType::f32);
    float* lse = tape.lse.resize(how.block.tokens() * s.num_heads);
    return {how.block, attention(), layout, queries(), rows(), values(), lse};
  }
};

// ---------------------------------------------------------------- forward

void make_queries(const Layer& l, MatrixView<const float> x) {
  linear(x, l.w.q_proj, l.how.compute, l.queries());
  rotate_block(l.how, l.s.head_dim, 0, l.queries());
}

/// [k | v] per kv head.
void make_rows(const Layer& l, MatrixView<const float> x) {
  const MatrixView<float> keys = l.in(l.scratch.keys, l.key_width()),
                          values = l.in(l.scratch.new_values, l.key_width()), rows = l.rows();
  linear(x, l.w.k_proj, l.how.compute, keys);
  rotate_block(l.how, l.s.head_dim, 0, keys);
  linear(x, l.w.v_proj, l.how.compute, values);
  parallel_for(rows.rows, rows.cols * work_of_value, [&](std::int64_t t) {
    float* row = rows.row(t);
    for (std::int64_t at = 0; at < l.key_width(); at += l.s.head_dim) {
      row = std::copy_n(keys.row(t) + at, l.s.head_dim, row);
      row = std::copy_n(values.row(t) + at, l.s.head_dim, row);
    }
  });
}

// ---------------------------------------------------------------- backward

/// From d_rows to d_x, which it writes, and the weights of keys and values.
void make_rows_backward(const Layer& l, MatrixView<const float> x, MatrixView<float> d_x) {
  const MatrixView<float> d_keys = l.in(l.scratch.keys, l.key_width()),
                          d_values = l.in(l.scratch.new_values, l.key_width()),
                          d_rows = l.in(l.scratch.d_rows, 2 * l.key_width());
  parallel_for(d_rows.rows, d_rows.cols * work_of_value, [&](std::int64_t t) {
    const float* d_row = d_rows.row(t);
    for (std::int64_t at = 0; at < l.key_width(); at += l.s.head_dim, d_row += 2 * l.s.head_dim) {
      std::copy_n(d_row, l.s.head_dim, d_keys.row(t) + at);
      std::copy_n(d_row + l.s.head_dim, l.s.head_dim, d_values.row(t) + at);
    }
  });
  rotate_block_back(l.how, l.s.head_dim, 0, d_keys);
  linear_pair_backward(x, {l.w.v_proj, d_values}, {l.w.k_proj, d_keys}, l.how.compute, d_x, false);
}

/// From d_queries to d_x, to which it adds.
void make_queries_backward(const Layer& l, MatrixView<const float> x, MatrixView<float> d_x) {
  const MatrixView<float> d_queries = l.in(l.scratch.d_queries, l.query_width());
  rotate_block_back(l.how, l.s.head_dim, 0, d_queries);
  linear_backward(x, l.w.q_proj, d_queries, l.how.compute, d_x, true);
}

}  // namespace

void heads_taped(const HeadsShape& shape, const TrainedHeads& weights, const BlockTraining& how,
                 MatrixView<const float> x, HeadsTape& tape, HeadsTrainingScratch& scratch,
                 MatrixView<float> out) {
  require(x.rows == how.block.tokens(), "heads: found {} tokens, expected {} sequences of {}", x.rows,
          how.block.sequences, how.block.length);
  const Layer l{shape, weights, how, tape, scratch};
  make_queries(l, x);
  make_rows(l, x);
  attend_block(l.over_itself());
  linear(l.values(), weights.o_proj, how.compute, out);
}

void heads_backward(const HeadsShape& shape, const TrainedHeads& weights, const BlockTraining& how,
                    MatrixView<const float> x, MatrixView<const float> d_out, HeadsTape& tape,
                    HeadsTrainingScratch& scratch, MatrixView<float> d_x) {
  const Layer l{shape, weights, how, tape, scratch};
  const MatrixView<float> d_values = l.in(scratch.d_values, l.query_width());
  linear_backward(l.values(), weights.o_proj, d_out, how.compute, d_values);
  attend_block_backward(l.over_itself(), d_values, l.in(scratch.d_queries, l.query_width()),
                        l.in(scratch.d_rows, 2 * l.key_width()));
  make_rows_backward(l, x, d_x);
  make_queries_backward(l, x, d_x);
}

}  // namespace mla
