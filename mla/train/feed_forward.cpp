#include "mla/train/feed_forward.h"

#include "mla/core/parallel.h"
#include "mla/kernels/leaf.h"

namespace mla {

void feed_forward_taped(const TrainedFeedForward& weights, MatrixView<const float> x, DType compute,
                        FeedForwardTape& tape, MatrixView<float> out) {
  const std::int64_t width = weights.gate_proj.value.rows;
  const MatrixView<float> gate = matrix_in(tape.gate, x.rows, width);
  const MatrixView<float> up = matrix_in(tape.up, x.rows, width);
  const MatrixView<float> hidden = matrix_in(tape.hidden, x.rows, width);
  linear(x, weights.gate_proj, compute, gate);
  linear(x, weights.up_proj, compute, up);
  parallel_for(x.rows, width * work_of_exp,
               [&](std::int64_t t) { leaf_kernels().swiglu(gate.row(t), up.row(t), hidden.row(t), width); });
  linear(hidden, weights.down_proj, compute, out);
}

void feed_forward_backward(const TrainedFeedForward& weights, const FeedForwardBackwardRun& run,
                           DType compute) {
  linear_backward(run.hidden, weights.down_proj, run.d_out, compute, run.d_hidden);
  swiglu_backward(run.gate, run.up, run.d_hidden, run.gate, run.up);
  linear_pair_backward(run.x, {weights.gate_proj, run.gate}, {weights.up_proj, run.up}, compute, run.d_x,
                       run.adds);
}

void feed_forward_backward(const TrainedFeedForward& weights, MatrixView<const float> x,
                           MatrixView<const float> d_out, DType compute, FeedForwardTape& tape,
                           FeedForwardBackwardScratch& scratch, MatrixView<float> d_x) {
  const std::int64_t width = weights.gate_proj.value.rows;
  const auto view = [&](Buffer<float>& buffer) { return MatrixView<float>(buffer.data(), x.rows, width); };
  feed_forward_backward(weights,
                        {x, view(tape.gate), view(tape.up), view(tape.hidden), d_out,
                         matrix_in(scratch.d_hidden, x.rows, width), d_x, false},
                        compute);
}

}  // namespace mla
