#include "mla/train/layers.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"
#include "mla/kernels/leaf.h"
#include "mla/kernels/panel_matmul.h"

namespace mla {

void linear(MatrixView<const float> x, const Trained& weight, DType compute, MatrixView<float> y) {
  panel_matmul(x, weight.weight(), compute, y);
}

namespace {

/// d_x = d_y W, or that added to what is there.
void input_backward(const LinearGradient& layer, DType compute, bool adds, MatrixView<float> d_x) {
  thread_local PanelFactor w;
  w.pack(rows_as_depth(layer.weight.value), compute);
  w.multiply(rows_as_side(layer.d_y), adds, d_x);
}

/// x as the right factor of d_W = d_y^T x: this thread's, until the next call.
const PanelFactor& packed_input(MatrixView<const float> x, DType compute) {
  thread_local PanelFactor packed;
  packed.pack(rows_as_depth(x), compute);
  return packed;
}

void weight_backward(const LinearGradient& layer, const PanelFactor& x) {
  x.multiply(rows_as_depth(layer.d_y), true, layer.weight.gradient);
}

}  // namespace

void linear_backward(MatrixView<const float> x, const Trained& weight, MatrixView<const float> d_y,
                     DType compute, MatrixView<float> d_x, bool adds) {
  if (d_x.data != nullptr) input_backward({weight, d_y}, compute, adds, d_x);
  weight_backward({weight, d_y}, packed_input(x, compute));
}

void linear_pair_backward(MatrixView<const float> x, const LinearGradient& one, const LinearGradient& other,
                          DType compute, MatrixView<float> d_x, bool adds) {
  input_backward(one, compute, adds, d_x);
  input_backward(other, compute, true, d_x);
  const PanelFactor& packed = packed_input(x, compute);
  weight_backward(one, packed);
  weight_backward(other, packed);
}

void rms_norm_backward(MatrixView<const float> x, const Trained& weight, double epsilon,
                       MatrixView<const float> d_y, MatrixView<float> d_x) {
  const std::int64_t n = x.cols;
  require(
      weight.value.cols == n && d_y.rows == x.rows && d_y.cols == n && d_x.rows == x.rows && d_x.cols == n,
      "rms_norm backward: x [{}, {}], weight [{}], d_y [{}, {}], d_x [{}, {}] do not fit", x.rows, n,
      weight.value.cols, d_y.rows, d_y.cols, d_x.rows, d_x.cols);
  // Each block of tokens sums its own part of the weight's gradient, and these are added in order.
  constexpr std::int64_t block_tokens = 64;
  const std::int64_t blocks = parts(x.rows, block_tokens);
  thread_local Buffer<float> memory;
  const MatrixView<float> sums = matrix_in(memory, blocks, n);
  parallel_for(blocks, block_tokens * n * work_of_value, [&](std::int64_t b) {
    std::fill_n(sums.row(b), n, 0.0f);
    for (std::int64_t t = b * block_tokens; t < std::min(x.rows, (b + 1) * block_tokens); ++t)
      leaf_kernels().rms_norm_backward(x.row(t), weight.value.data, static_cast<float>(epsilon), d_y.row(t),
                                       d_x.row(t), sums.row(b), n);
  });
  for (std::int64_t b = 0; b < blocks; ++b)
    leaf_kernels().add_scaled(sums.row(b), 1.0f, weight.gradient.data, n);
}

void swiglu_backward(MatrixView<const float> gate, MatrixView<const float> up,
                     MatrixView<const float> d_hidden, MatrixView<float> d_gate, MatrixView<float> d_up) {
  parallel_for(gate.rows, gate.cols * work_of_exp, [&](std::int64_t t) {
    leaf_kernels().swiglu_backward(gate.row(t), up.row(t), d_hidden.row(t), d_gate.row(t), d_up.row(t),
                                   gate.cols);
  });
}

void embedding_backward(std::span<const std::int32_t> ids, double scale, MatrixView<const float> d_stream,
                        const Trained& embedding) {
  const MatrixView<float> gradient = embedding.gradient;
  require(static_cast<std::int64_t>(ids.size()) == d_stream.rows && gradient.cols == d_stream.cols,
          "embedding backward: {} ids, d_stream [{}, {}], embedding [{}, {}] do not fit", ids.size(),
          d_stream.rows, d_stream.cols, gradient.rows, gradient.cols);
  for (const std::int32_t id : ids)
    require(id >= 0 && id < gradient.rows, "embedding backward: found the id {}, expected 0 to {}", id,
            gradient.rows - 1);
  // Tokens in order, so that those of the same id are, too; the threads share the columns.
  constexpr std::int64_t most_columns = 64;
  const std::int64_t blocks = parts(gradient.cols, most_columns);
  parallel_for(blocks, d_stream.rows * most_columns * work_of_value, [&](std::int64_t b) {
    const std::int64_t first = b * most_columns, count = std::min(most_columns, gradient.cols - first);
    for (std::int64_t t = 0; t < d_stream.rows; ++t)
      leaf_kernels().add_scaled(d_stream.row(t) + first, static_cast<float>(scale),
                                gradient.row(ids[static_cast<std::size_t>(t)]) + first, count);
  });
}

namespace {

/// Tokens whose logits are in memory at a time.
constexpr std::int64_t loss_tokens = 256;

/// A token's loss; turns its logits into their gradient times `weight`, if that is wanted.
double token_loss(float* logits, std::int64_t vocab, double logit_scale, std::int32_t target, double weight,
                  bool wants_gradient) {
  if (target < 0) {
    if (wants_gradient) std::fill_n(logits, vocab, 0.0f);
    return 0.0;
  }
  const LeafKernels& leaf = leaf_kernels();
  const auto scale = static_cast<float>(logit_scale);
  const ExpSum sum = leaf.exp_sum(logits, scale, vocab);
  const double score = static_cast<double>(scale) * static_cast<double>(logits[target]);
  if (wants_gradient) {
    const double factor = weight * logit_scale;
    leaf.softmax(logits, scale, sum, static_cast<float>(factor), logits, vocab);
    logits[target] -= static_cast<float>(factor);
  }
  return static_cast<double>(sum.top) - score + std::log(static_cast<double>(sum.sum));
}

}  // namespace

double cross_entropy(MatrixView<const float> hidden, const Trained& head, double logit_scale,
                     std::span<const std::int32_t> targets, double weight, DType compute,
                     CrossEntropyScratch& scratch, MatrixView<float> d_hidden) {
  const std::int64_t vocab = head.value.rows;
  const bool wants_gradient = d_hidden.data != nullptr;
  require(static_cast<std::int64_t>(targets.size()) == hidden.rows && head.value.cols == hidden.cols,
          "cross entropy: {} targets, hidden [{}, {}], head [{}, {}] do not fit", targets.size(), hidden.rows,
          hidden.cols, vocab, head.value.cols);
  for (const std::int32_t target : targets)
    require(target >= -1 && target < vocab, "cross entropy: found the target {}, expected -1 to {}", target,
            vocab - 1);
  scratch.output.pack(rows_as_side(head.value), compute);
  if (wants_gradient) scratch.backward.pack(rows_as_depth(head.value), compute);
  double sum = 0.0;
  for (std::int64_t first = 0; first < hidden.rows; first += loss_tokens) {
    const std::int64_t count = std::min(loss_tokens, hidden.rows - first);
    const MatrixView<const float> some = hidden.block(first, count);
    const MatrixView<float> logits = matrix_in(scratch.logits, count, vocab);
    scratch.output.multiply(rows_as_side(some), false, logits);
    std::array<double, loss_tokens> losses;
    parallel_for(count, vocab * work_of_exp, [&](std::int64_t t) {
      losses[static_cast<std::size_t>(t)] =
          token_loss(logits.row(t), vocab, logit_scale, targets[static_cast<std::size_t>(first + t)], weight,
                     wants_gradient);
    });
    for (std::int64_t t = 0; t < count; ++t) sum += losses[static_cast<std::size_t>(t)];
    if (!wants_gradient) continue;
    scratch.backward.multiply(rows_as_side(logits), false, d_hidden.block(first, count));
    weight_backward({head, logits}, packed_input(some, compute));
  }
  return sum;
}

}  // namespace mla
