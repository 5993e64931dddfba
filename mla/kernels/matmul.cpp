#include "mla/kernels/matmul.h"

#include <algorithm>
#include <cstring>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/gemm.h"
#include "mla/kernels/leaf.h"

namespace mla {
namespace {

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

/// Rounds `n` values to `compute` and stores them in `type` (f32 storage of bf16 values if the two differ).
void store_rounded(const float* x, DType compute, DType type, std::int64_t n, void* out) {
  const LeafKernels& leaf = leaf_kernels();
  if (type == DType::bf16) return leaf.f32_to_bf16(x, static_cast<bf16*>(out), n);
  auto* values = static_cast<float*>(out);
  if (compute == DType::f32) {
    std::memcpy(values, x, static_cast<std::size_t>(n) * sizeof(float));
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) values[i] = to_float(to_bf16(x[i]));
}

/// Memory that one thread reuses from call to call.
struct Scratch {
  Buffer<float> row;        // one weight row as f32
  Buffer<std::byte> block;  // converted weights [outputs, depth]
  Buffer<float> product;    // [outputs, gemm_tokens]
};

/// Outputs [begin, begin + count) of W as a [count, cols] block of gemm elements; the stored rows themselves
/// if they are that already.
const void* weight_rows(const Weight& w, std::int64_t begin, std::int64_t count, DType compute,
                        Scratch& scratch) {
  const DType type = gemm_type(compute);
  if (w.dtype == type && type == compute) return row_data(w, begin);
  const std::int64_t row_bytes = w.cols * size_of(type);
  std::byte* block = scratch.block.resize(count * row_bytes);
  float* row = scratch.row.resize(w.cols);
  for (std::int64_t i = 0; i < count; ++i) {
    read_row(w, begin + i, row);
    store_rounded(row, compute, type, w.cols, block + i * row_bytes);
  }
  return block;
}

/// Columns [begin, begin + count) of W as a [count, rows] block of gemm elements.
const void* weight_columns(const Weight& w, std::int64_t begin, std::int64_t count, DType compute,
                           Scratch& scratch) {
  const DType type = gemm_type(compute);
  std::byte* block = scratch.block.resize(count * w.rows * size_of(type));
  float* row = scratch.row.resize(2 * count);
  float* rounded = row + count;
  for (std::int64_t r = 0; r < w.rows; ++r) {
    read_part(w, r, begin, count, row);
    store_rounded(row, compute, type, count, rounded);
    for (std::int64_t i = 0; i < count; ++i) {
      if (type == DType::bf16) {
        reinterpret_cast<bf16*>(block)[i * w.rows + r] = reinterpret_cast<const bf16*>(rounded)[i];
      } else {
        reinterpret_cast<float*>(block)[i * w.rows + r] = rounded[i];
      }
    }
  }
  return block;
}

/// x as gemm elements in blocks of 16 rows, the last block filled up with zeros: [ceil(m / 16) * 16, depth].
Buffer<std::byte> pack_tokens(MatrixView<const float> x, DType compute) {
  const DType type = gemm_type(compute);
  const std::int64_t padded = (x.rows + gemm_tokens - 1) / gemm_tokens * gemm_tokens;
  Buffer<std::byte> packed(padded * x.cols * size_of(type));
  for (std::int64_t t = 0; t < x.rows; ++t) {
    store_rounded(x.row(t), compute, type, x.cols, packed.data() + t * x.cols * size_of(type));
  }
  return packed;
}

/// The walk that both products share: y [m, outputs] from x [m, depth] and blocks of weights [count, depth].
template <class WeightBlock>
void run_blocks(MatrixView<const float> x, DType compute, std::int64_t outputs, MatrixView<float> y,
                const WeightBlock& weight_block) {
  const std::int64_t depth = x.cols;
  const DType type = gemm_type(compute);
  const Buffer<std::byte> tokens = pack_tokens(x, compute);

  const auto one_block = [&](std::int64_t b) {
    thread_local Scratch scratch;
    const std::int64_t begin = b * block_outputs;
    const std::int64_t count = std::min(block_outputs, outputs - begin);
    const auto [a, lda] = weight_block(begin, count, scratch);
    float* product = scratch.product.resize(block_outputs * gemm_tokens);
    for (std::int64_t t = 0; t < x.rows; t += gemm_tokens) {
      const std::int64_t valid = std::min(gemm_tokens, x.rows - t);
      gemm_block(type, count, depth, a, lda, tokens.data() + t * depth * size_of(type), valid, product);
      for (std::int64_t i = 0; i < valid; ++i) {
        float* row = y.row(t + i) + begin;
        for (std::int64_t o = 0; o < count; ++o) row[o] = product[o * gemm_tokens + i];
      }
    }
  };
  const std::int64_t blocks = (outputs + block_outputs - 1) / block_outputs;
  // A few tokens cost as much as one: their weights must be read.
  parallel_for(blocks, block_outputs * depth * std::max(x.rows, std::int64_t{4}), one_block);
}

struct Operand {
  const void* data;
  std::int64_t lda;
};

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
  run_blocks(x, compute, w.rows, y, [&](std::int64_t begin, std::int64_t count, Scratch& scratch) {
    return Operand{weight_rows(w, begin, count, compute, scratch), w.cols};
  });
}

void matmul_transposed(MatrixView<const float> x, const Weight& w, DType compute, MatrixView<float> y) {
  require(x.cols == w.rows && y.cols == w.cols && x.rows == y.rows,
          "matmul_transposed: x [{}, {}], W [{}, {}], y [{}, {}] do not fit", x.rows, x.cols, w.rows, w.cols,
          y.rows, y.cols);
  run_blocks(x, compute, w.cols, y, [&](std::int64_t begin, std::int64_t count, Scratch& scratch) {
    return Operand{weight_columns(w, begin, count, compute, scratch), w.rows};
  });
}

}  // namespace mla
