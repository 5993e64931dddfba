#include "mla/kernels/ops.h"

#include "mla/kernels/leaf.h"

namespace mla {

void rms_norm(MatrixView<const float> x, std::span<const float> weight, double epsilon,
              MatrixView<float> out) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    leaf_kernels().rms_norm(x.row(t), weight.data(), static_cast<float>(epsilon), out.row(t), x.cols);
  }
}

void add_scaled(MatrixView<const float> x, double scale, MatrixView<float> y) {
  for (std::int64_t t = 0; t < x.rows; ++t) {
    leaf_kernels().add_scaled(x.row(t), static_cast<float>(scale), y.row(t), x.cols);
  }
}

}  // namespace mla
