#pragma once
#include <cstdint>

#include "mla/core/buffer.h"

namespace mla {

/// Rows of a row-major matrix somewhere in memory; `stride` counts elements from row to row.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  MatrixView() = default;
  MatrixView(T* data_, std::int64_t rows_, std::int64_t cols_) : MatrixView(data_, rows_, cols_, cols_) {}
  MatrixView(T* data_, std::int64_t rows_, std::int64_t cols_, std::int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}

  T* row(std::int64_t i) const { return data + i * stride; }
  /// `count` rows from row `begin`.
  MatrixView block(std::int64_t begin, std::int64_t count) const {
    return {data + begin * stride, count, cols, stride};
  }
  /// `count` columns from column `begin`, of every row.
  MatrixView columns(std::int64_t begin, std::int64_t count) const {
    return {data + begin, rows, count, stride};
  }
  operator MatrixView<const T>() const { return {data, rows, cols, stride}; }
};

/// A dense matrix in `buffer`, which grows if it must and is otherwise reused.
template <class T>
MatrixView<T> matrix_in(Buffer<T>& buffer, std::int64_t rows, std::int64_t cols) {
  return {buffer.resize(rows * cols), rows, cols};
}

}  // namespace mla
