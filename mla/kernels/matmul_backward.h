#pragma once
#include "mla/core/buffer.h"
#include "mla/core/dtype.h"
#include "mla/core/tensor.h"
#include "mla/kernels/panel.h"

namespace mla {

// The two products of y = x W^T backward: x [tokens, inputs], W [outputs, inputs], y [tokens, outputs].
//
// `compute` is f32 or bf16. With bf16 both operands are rounded to bf16 first; products and sums are f32
// either way. Sums are taken in the same order at any number of threads, so the bits are the same too.
// `packed` is memory that calls reuse.

/// d_x = d_y W, or that added to what is there.
void matmul_backward_input(MatrixView<const float> d_y, MatrixView<const float> weight, DType compute,
                           bool adds, Buffer<PanelUnit>& packed, MatrixView<float> d_x);

/// d_weight += d_y^T x.
void matmul_backward_weight(MatrixView<const float> d_y, MatrixView<const float> x, DType compute,
                            Buffer<PanelUnit>& packed, MatrixView<float> d_weight);

}  // namespace mla
