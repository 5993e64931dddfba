#include "mla/kernels/ops.h"

#include "mla/core/parallel.h"
#include "mla/kernels/leaf.h"

namespace mla {
void rms_norm(MatrixView<const float> x, std::span<const float> weight, double epsilon,
              MatrixView<float> out) {
  parallel_for(x.rows, x.cols * work_of_value, [&](std::int64_t t) {
    leaf_kernels().rms_norm(x.row(t), weight.data(), static_cast<float>(epsilon), out.row(t), x.cols);
  });
}

void add_scaled(MatrixView<const float> x, double scale, MatrixView<float> y) {
  parallel_for(x.rows, x.cols * work_of_value, [&](std::int64_t t) {
    leaf_kernels().add_scaled(x.row(t), static_cast<float>(scale), y.row(t), x.cols);
  });
}

}  // namespace mla
