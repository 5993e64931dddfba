#pragma once
#include <cstdint>

#include "mla/core/buffer.h"
#include "mla/core/dtype.h"
#include "mla/core/tensor.h"
#include "mla/kernels/matmul.h"
#include "mla/kernels/panel.h"

namespace mla {

// The products of training, by packed panels (panel.h): for many rows faster than matmul, which reads weights
// where they lie.
//
// `compute` is f32 or bf16. With bf16 both operands are rounded to bf16 first; products and sums are f32
// either way. Sums are taken in the same order at any number of threads and in any company of rows, so the
// bits are the same too. No memory is allocated once a thread has seen products of that size.

/// A matrix as an operand of a product: [side, depth], or depth_first [depth, side], where the depth is what
/// the product sums over.
struct PanelOperand {
  MatrixView<const float> x;
  bool depth_first;

  std::int64_t side() const { return depth_first ? x.cols : x.rows; }
  std::int64_t depth() const { return depth_first ? x.rows : x.cols; }
};
inline PanelOperand rows_as_side(MatrixView<const float> x) {
  return {x, false};
}
inline PanelOperand rows_as_depth(MatrixView<const float> x) {
  return {x, true};
}

/// The right factor b [depth, n] of products a b, packed once for all of them.
class PanelFactor {
 public:
  /// Takes the place of what was packed before; b may go then.
  void pack(PanelOperand b, DType compute);
  /// c [m, n] = or += a b, for a [m, depth]. Throws Error if the shapes do not fit.
  void multiply(PanelOperand a, bool adds, MatrixView<float> c) const;

 private:
  struct Product;

  std::int64_t units() const;
  std::int64_t chunks() const;
  std::int64_t panels() const;
  std::int64_t first_value(std::int64_t chunk) const;
  std::int64_t values_of(std::int64_t chunk) const;
  std::int64_t units_of(std::int64_t chunk) const;
  std::int64_t place(std::int64_t chunk, std::int64_t panel) const;
  void pack_part(PanelOperand b, std::int64_t first_unit, std::int64_t first_panel);

  const PanelKernels* kernels_ = nullptr;
  bool rounds_ = false;  // operands of f32 to bf16
  std::int64_t side_ = 0, depth_ = 0;
  Buffer<PanelUnit> packed_;  // chunk of the depth by chunk, panel by panel
};

/// y = x W^T, as matmul, but summed in another order. Throws Error for a weight that isn't of f32.
void panel_matmul(MatrixView<const float> x, const Weight& weight, DType compute, MatrixView<float> y);

}  // namespace mla
