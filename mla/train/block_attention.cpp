#include "mla/train/block_attention.h"

#include <algorithm>
#include <vector>

#include "mla/attention/backward.h"
#include "mla/attention/forward.h"
#include "mla/core/parallel.h"

namespace mla {
namespace {

/// Calls turn(row of the table, values) for what is rotated in each head of each token.
template <class Turn>
void for_each_rotated(const BlockTraining& how, std::int64_t width, std::int64_t offset, MatrixView<float> x,
                      const Turn& turn) {
  if (how.rotary->dim() == 0) return;
  const std::int64_t heads = x.cols / width;
  parallel_for(x.rows, heads * how.rotary->dim() * work_of_value, [&](std::int64_t t) {
    for (std::int64_t h = 0; h < heads; ++h) turn(t % how.block.length, x.row(t) + h * width + offset);
  });
}

/// The layout in floats: it is of f32.
RowShape row_shape(const RowLayout& layout) {
  constexpr std::int64_t bytes = sizeof(float);
  return {layout.bytes() / bytes, layout.head_bytes() / bytes, layout.value_offset() / bytes};
}

}  // namespace

void rotate_block(const BlockTraining& how, std::int64_t width, std::int64_t offset, MatrixView<float> x) {
  for_each_rotated(how, width, offset, x,
                   [&](std::int64_t row, float* at) { how.rotary->rotate(*how.table, row, at); });
}

void rotate_block_back(const BlockTraining& how, std::int64_t width, std::int64_t offset,
                       MatrixView<float> d_x) {
  for_each_rotated(how, width, offset, d_x,
                   [&](std::int64_t row, float* at) { how.rotary->rotate_back(*how.table, row, at); });
}

void attend_block(const BlockAttention& a) {
  const std::int64_t length = a.block.length;
  std::vector<AttentionForward> sequences;
  for (std::int64_t first = 0; first < a.block.tokens(); first += length) {
    sequences.push_back({{a.queries.row(first), length, a.queries.stride, a.shape.d_qk},
                         a.rows.row(first),
                         length,
                         a.out.row(first),
                         a.lse + first * a.shape.h_q});
  }
  attend_forward(a.shape, row_shape(a.layout), sequences);
}

void attend_block_backward(const BlockAttention& a, MatrixView<const float> d_out,
                           MatrixView<float> d_queries, MatrixView<float> d_rows) {
  parallel_for(d_rows.rows, d_rows.cols * work_of_value,
               [&](std::int64_t t) { std::fill_n(d_rows.row(t), d_rows.cols, 0.0f); });
  const std::int64_t length = a.block.length;
  std::vector<AttentionGradient> sequences;
  for (std::int64_t first = 0; first < a.block.tokens(); first += length) {
    sequences.push_back({{a.queries.row(first), length, a.queries.stride, a.shape.d_qk},
                         a.rows.row(first),
                         length,
                         a.out.row(first),
                         a.lse + first * a.shape.h_q,
                         d_out.row(first),
                         d_queries.row(first),
                         d_rows.row(first)});
  }
  attend_backward(a.shape, row_shape(a.layout), sequences);
}

}  // namespace mla
