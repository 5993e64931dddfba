#include "mla/kernels/matmul.h"

#include <algorithm>
#include <cstring>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/gemm.h"
#include "mla/kernels/leaf.h"
#include "mla/kernels/product.h"

namespace mla {
namespace {

/// Outputs of one piece of work: their weights stay in a core's cache while all tokens pass.
constexpr std::int64_t block_outputs = 64;

const std::byte* row_data(const Weight& w, std::int64_t row) {
  return w.data + (w.first_row + row) * w.cols * size_of(w.dtype);
}

struct Fp8Table {
  float value[256];
};

const Fp8Table& fp8_table() {
  static const Fp8Table table = [] {
    Fp8Table t{};
    for (int code = 0; code < 256; ++code) t.value[code] = f8_e4m3_to_float(static_cast<std::uint8_t>(code));
    return t;
  }();
  return table;
}

void read_fp8(const Weight& w, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const auto* codes = reinterpret_cast<const std::uint8_t*>(row_data(w, row));
  const std::int64_t blocks_across = (w.cols + w.block_cols - 1) / w.block_cols;
  const float* scales = w.scales + (w.first_row + row) / w.block_rows * blocks_across;
  const Fp8Table& table = fp8_table();
  for (std::int64_t c = begin; c < begin + count;) {
    const float scale = scales[c / w.block_cols];
    const std::int64_t end = std::min((c / w.block_cols + 1) * w.block_cols, begin + count);
    for (; c < end; ++c) *out++ = table.value[codes[c]] * scale;
  }
}

/// Elements [begin, begin + count) of a row, as f32.
void read_part(const Weight& w, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::byte* data = row_data(w, row) + begin * size_of(w.dtype);
  switch (w.dtype) {
    case DType::f32:
      std::memcpy(out, data, static_cast<std::size_t>(count) * sizeof(float));
      return;
    case DType::bf16:
      leaf_kernels().bf16_to_f32(reinterpret_cast<const bf16*>(data), out, count);
      return;
    case DType::f16:
      for (std::int64_t c = 0; c < count; ++c)
        out[c] = f16_to_float(reinterpret_cast<const std::uint16_t*>(data)[c]);
      return;
    case DType::f8_e4m3:
      read_fp8(w, row, begin, count, out);
      return;
    case DType::i8:
      break;
  }
  fail("weight of type {}: not a weight type", name_of(w.dtype));
}

/// Rounds values to what `compute` holds; they stay f32.
void round_to(DType compute, float* x, std::int64_t n) {
  if (compute == DType::f32) return;
  for (std::int64_t i = 0; i < n; ++i) x[i] = to_float(to_bf16(x[i]));
}

/// Memory that one thread reuses from call to call.
struct Scratch {
  Buffer<float> row;      // part of a weight row
  Buffer<float> block;    // converted weights
  Buffer<bf16> narrow;    // converted weights
  Buffer<float> product;  // [outputs, gemm_tokens]
};

Scratch& scratch() {
  thread_local Scratch memory;
  return memory;
}

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Multiply-adds of `outputs` outputs; a few tokens cost as much as one, since the weights must be read.
std::int64_t work_of(std::int64_t outputs, MatrixView<const float> x) {
  return outputs * x.cols * std::max(x.rows, std::int64_t{4});
}

// ---------------------------------------------------------------- bf16 pairs: our own kernels, product.h

struct Bf16Block {
  const bf16* data;
  std::int64_t stride;
};

/// Rows [first, first + count) of columns [begin, begin + width): the stored ones if they are bf16.
Bf16Block bf16_block(const Weight& w, std::int64_t first, std::int64_t count, std::int64_t begin,
                     std::int64_t width) {
  if (w.dtype == DType::bf16) return {reinterpret_cast<const bf16*>(row_data(w, first)) + begin, w.cols};
  bf16* block = scratch().narrow.resize(count * width);
  float* row = scratch().row.resize(width);
  for (std::int64_t i = 0; i < count; ++i) {
    read_part(w, first + i, begin, width, row);
    leaf_kernels().f32_to_bf16(row, block + i * width, width);
  }
  return {block, width};
}

void matmul_bf16(MatrixView<const float> x, const Weight& w, MatrixView<float> y) {
  const std::int64_t depth = x.cols;
  const std::int64_t packed_block = packed_size(dot_tokens, depth);
  const std::int64_t token_blocks = (x.rows + dot_tokens - 1) / dot_tokens;
  const Buffer<bf16> tokens = [&] {
    Buffer<bf16> packed(token_blocks * packed_block);
    parallel_for(token_blocks, dot_tokens * depth, [&](std::int64_t b) {
      const std::int64_t count = std::min(dot_tokens, x.rows - b * dot_tokens);
      pack_dot_tokens(x.row(b * dot_tokens), x.stride, count, depth, packed.data() + b * packed_block);
    });
    return packed;
  }();
  parallel_for((w.rows + block_outputs - 1) / block_outputs, work_of(block_outputs, x), [&](std::int64_t i) {
    const std::int64_t first = i * block_outputs;
    const std::int64_t count = std::min(block_outputs, w.rows - first);
    const Bf16Block weights = bf16_block(w, first, count, 0, depth);
    for (std::int64_t b = 0; b < token_blocks; ++b) {
      const std::int64_t t = b * dot_tokens;
      dot_bf16({weights.data, weights.stride, count, depth, tokens.data() + b * packed_block,
                std::min(dot_tokens, x.rows - t), y.row(t) + first, y.stride});
    }
  });
}

void matmul_transposed_bf16(MatrixView<const float> x, const Weight& w, MatrixView<float> y) {
  const std::int64_t depth = x.cols;
  const std::int64_t stride = round_up(depth, 2);
  Buffer<bf16> tokens(x.rows * stride);
  for (std::int64_t t = 0; t < x.rows; ++t)
    leaf_kernels().f32_to_bf16(x.row(t), tokens.data() + t * stride, depth);
  parallel_for((w.cols + block_outputs - 1) / block_outputs, work_of(block_outputs, x), [&](std::int64_t i) {
    const std::int64_t first = i * block_outputs;
    const std::int64_t count = std::min(block_outputs, w.cols - first);
    const Bf16Block weights = bf16_block(w, 0, depth, first, count);
    for (std::int64_t t = 0; t < x.rows; t += sum_tokens) {
      sum_bf16({weights.data, weights.stride, count, depth, tokens.data() + t * stride, stride,
                std::min(sum_tokens, x.rows - t), y.row(t) + first, y.stride});
    }
  });
}

// ---------------------------------------------------------------- f32: oneDNN, gemm.h

/// Outputs [first, first + count) of W as a [count, cols] f32 block rounded to `compute`; the stored rows if
/// they are that.
const float* f32_rows(const Weight& w, std::int64_t first, std::int64_t count, DType compute) {
  if (w.dtype == DType::f32 && compute == DType::f32)
    return reinterpret_cast<const float*>(row_data(w, first));
  float* block = scratch().block.resize(count * w.cols);
  for (std::int64_t i = 0; i < count; ++i) read_part(w, first + i, 0, w.cols, block + i * w.cols);
  round_to(compute, block, count * w.cols);
  return block;
}

/// Columns [first, first + count) of W as a [count, rows] f32 block rounded to `compute`.
const float* f32_columns(const Weight& w, std::int64_t first, std::int64_t count, DType compute) {
  float* block = scratch().block.resize(count * w.rows);
  float* row = scratch().row.resize(count);
  for (std::int64_t r = 0; r < w.rows; ++r) {
    read_part(w, r, first, count, row);
    for (std::int64_t i = 0; i < count; ++i) block[i * w.rows + r] = row[i];
  }
  round_to(compute, block, count * w.rows);
  return block;
}

/// y [m, outputs] from x [m, depth] and blocks of weights [count, depth], 16 tokens at a time.
template <class WeightBlock>
void multiply_f32(MatrixView<const float> x, DType compute, std::int64_t outputs, MatrixView<float> y,
                  const WeightBlock& weight_block) {
  const std::int64_t depth = x.cols;
  Buffer<float> tokens(round_up(x.rows, gemm_tokens) * depth);
  for (std::int64_t t = 0; t < x.rows; ++t) std::copy_n(x.row(t), depth, tokens.data() + t * depth);
  round_to(compute, tokens.data(), x.rows * depth);

  parallel_for((outputs + block_outputs - 1) / block_outputs, work_of(block_outputs, x), [&](std::int64_t b) {
    const std::int64_t first = b * block_outputs;
    const std::int64_t count = std::min(block_outputs, outputs - first);
    const float* weights = weight_block(first, count);
    float* product = scratch().product.resize(block_outputs * gemm_tokens);
    for (std::int64_t t = 0; t < x.rows; t += gemm_tokens) {
      const std::int64_t valid = std::min(gemm_tokens, x.rows - t);
      gemm_block(count, depth, weights, tokens.data() + t * depth, valid, product);
      for (std::int64_t i = 0; i < valid; ++i) {
        float* row = y.row(t + i) + first;
        for (std::int64_t o = 0; o < count; ++o) row[o] = product[o * gemm_tokens + i];
      }
    }
  });
}

bool multiplies_bf16_pairs(DType compute) {
  static const bool has_kernels = selected_isa() == Isa::avx512 && supports_bf16_products();
  return compute == DType::bf16 && has_kernels;
}

}  // namespace

Weight Weight::row_block(std::int64_t begin, std::int64_t count) const {
  Weight block = *this;
  block.first_row += begin;
  block.rows = count;
  return block;
}

Weight as_weight(MatrixView<const float> matrix) {
  require(matrix.stride == matrix.cols, "weight: rows must be contiguous");
  Weight weight;
  weight.data = reinterpret_cast<const std::byte*>(matrix.data);
  weight.rows = matrix.rows;
  weight.cols = matrix.cols;
  return weight;
}

void read_row(const Weight& w, std::int64_t row, float* out) {
  read_part(w, row, 0, w.cols, out);
}

void matmul(MatrixView<const float> x, const Weight& w, DType compute, MatrixView<float> y) {
  require(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows,
          "matmul: x [{}, {}], W [{}, {}], y [{}, {}] do not fit", x.rows, x.cols, w.rows, w.cols, y.rows,
          y.cols);
  if (multiplies_bf16_pairs(compute)) return matmul_bf16(x, w, y);
  multiply_f32(x, compute, w.rows, y,
               [&](std::int64_t first, std::int64_t count) { return f32_rows(w, first, count, compute); });
}

void matmul_transposed(MatrixView<const float> x, const Weight& w, DType compute, MatrixView<float> y) {
  require(x.cols == w.rows && y.cols == w.cols && x.rows == y.rows,
          "matmul_transposed: x [{}, {}], W [{}, {}], y [{}, {}] do not fit", x.rows, x.cols, w.rows, w.cols,
          y.rows, y.cols);
  if (multiplies_bf16_pairs(compute)) return matmul_transposed_bf16(x, w, y);
  multiply_f32(x, compute, w.cols, y,
               [&](std::int64_t first, std::int64_t count) { return f32_columns(w, first, count, compute); });
}

}  // namespace mla
