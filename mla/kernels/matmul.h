#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/core/tensor.h"

namespace mla {

/// A stored weight matrix W [rows, cols], row-major, in its stored type: a view of memory that somebody else
/// owns. `rows` counts outputs and `cols` inputs, as in a checkpoint's `*.weight` tensors.
struct Weight {
  DType dtype = DType::f32;
  const std::byte* data = nullptr;  ///< row 0 of the stored tensor
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t first_row = 0;  ///< of this view in the stored tensor

  // fp8 only: the value of element (r, c) is data[r][c] * scales[r / block_rows][c / block_cols].
  const float* scales = nullptr;
  std::int64_t block_rows = 0;
  std::int64_t block_cols = 0;

  bool empty() const { return data == nullptr; }
  /// `count` rows from row `begin` of this view.
  Weight row_block(std::int64_t begin, std::int64_t count) const;
};

/// A dense f32 matrix as a weight.
Weight as_weight(MatrixView<const float> matrix);

/// Row `row` of `weight` as f32 (exact for every stored type): out [cols].
void read_row(const Weight& weight, std::int64_t row, float* out);

/// y = x W^T: x [m, cols], y [m, rows], f32 in and out.
///
/// `compute` is f32 or bf16. With bf16 both operands are rounded to bf16 first; products and sums are f32
/// either way. The weight is never copied whole: blocks of it are converted as they are needed.
///
/// The bits of a row of y depend on that row of x and on W alone: not on the other rows, nor on the number of
/// threads: whoever rides in the other lanes of a vector, the same multiply-adds in the same order make it.
/// No memory is allocated once a thread has seen products of that size.
void matmul(MatrixView<const float> x, const Weight& weight, DType compute, MatrixView<float> y);

/// y = x W: x [m, rows], y [m, cols]. Otherwise as matmul.
void matmul_transposed(MatrixView<const float> x, const Weight& weight, DType compute, MatrixView<float> y);

}  // namespace mla
