#include "mla/model/feed_forward.h"

#include "mla/kernels/leaf.h"

namespace mla {

void feed_forward(const FeedForwardWeights& weights, MatrixView<const float> x, DType compute,
                  FeedForwardScratch& scratch, MatrixView<float> out) {
  const std::int64_t width = weights.gate_proj.rows;
  MatrixView<float> gate = matrix_in(scratch.gate, x.rows, width);
  MatrixView<float> up = matrix_in(scratch.up, x.rows, width);
  matmul(x, weights.gate_proj, compute, gate);
  matmul(x, weights.up_proj, compute, up);
  leaf_kernels().swiglu(gate.data, up.data, gate.data, x.rows * width);
  matmul(gate, weights.down_proj, compute, out);
}

}  // namespace mla
