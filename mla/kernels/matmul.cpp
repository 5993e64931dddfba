#include "mla/kernels/matmul.h"

#include <algorithm>
#include <cstring>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"
#include "mla/kernels/leaf.h"
#include "mla/kernels/product.h"

namespace mla {
namespace {

/// Columns of one piece of work: many, to read long stretches of each row, when the weights are read once;
/// few, for them to stay in a core's cache, when token after token passes.
constexpr std::int64_t few_tokens_columns = 256, block_columns = 64;

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
      leaf_kernels().f16_to_f32(reinterpret_cast<const std::uint16_t*>(data), out, count);
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

/// Memory that one thread reuses from call to call; it only grows.
template <class T>
struct Scratch {
  Buffer<T> tokens;  // packed
  Buffer<T> block;   // converted weights
  Buffer<float> row;
};

template <class T>
Scratch<T>& scratch() {
  thread_local Scratch<T> memory;
  return memory;
}

/// Multiply-adds of `outputs` outputs; a few tokens cost as much as one, since the weights must be read.
std::int64_t work_of(std::int64_t outputs, MatrixView<const float> x) {
  return outputs * x.cols * std::max(x.rows, std::int64_t{4});
}

// T below is what the operands are multiplied as: bf16 where the CPU multiplies bf16 pairs, else f32.

/// x[0..n) rounded to `compute`, as T.
template <class T>
void convert(const float* x, DType compute, T* out, std::int64_t n) {
  if constexpr (sizeof(T) == sizeof(bf16)) {
    leaf_kernels().f32_to_bf16(x, out, n);
  } else {
    if (out != x) std::copy_n(x, n, out);
    round_to(compute, out, n);
  }
}

void fetch_values(const float* x, std::int64_t n) {
  constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(float));
  for (std::int64_t i = 0; i < n; i += line) __builtin_prefetch(x + i);
}

/// Packs rows x[t][0..depth) as a set of `tokens`, part by part of their depth.
template <class T>
void pack_set(MatrixView<const float> x, DType compute, std::int64_t tokens, T* packed) {
  constexpr std::int64_t step = dot_step<T>, most = 256;
  T part[most];
  for (std::int64_t begin = 0; begin < x.cols; begin += most) {
    const std::int64_t count = std::min(most, x.cols - begin), padded = packed_depth(count);
    const std::int64_t next = std::min(most, x.cols - begin - count);
    std::fill(part + count, part + padded, T{});
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (t < x.rows) {
        convert(x.row(t) + begin, compute, part, count);
        fetch_values(x.row(t) + begin + count, next);  // pieces of rows far apart: no CPU fetches these ahead
      } else {
        std::fill_n(part, count, T{});
      }
      for (std::int64_t d = 0; d < padded; d += step)
        std::memcpy(packed + (begin + d) * tokens + t * step, part + d, 8);
    }
  }
}

/// Packs a block of rows for DotTile.
template <class T>
void pack_tokens(MatrixView<const float> x, DType compute, std::int64_t group, T* packed) {
  const std::int64_t set = set_tokens(x.rows, group);
  for (std::int64_t t = 0; t < x.rows; t += set)
    pack_set(x.block(t, std::min(set, x.rows - t)), compute, set, packed + t * packed_depth(x.cols));
}

/// Rows of weights as T.
template <class T>
struct Block {
  const T* data;
  std::int64_t stride;
};

/// Whether the stored values are what a product is made of.
template <class T>
bool is_stored(const Weight& w, DType compute) {
  if (w.dtype == DType::bf16) return sizeof(T) == sizeof(bf16);
  return w.dtype == DType::f32 && sizeof(T) == sizeof(float) && compute == DType::f32;
}

/// Rows [first, first + count) of columns [begin, begin + width), where they are stored.
template <class T>
Block<T> stored_block(const Weight& w, std::int64_t first, std::int64_t begin) {
  return {reinterpret_cast<const T*>(row_data(w, first)) + begin, w.cols};
}

/// The same in scratch, rounded to `compute`.
template <class T>
Block<T> converted_block(const Weight& w, std::int64_t first, std::int64_t count, std::int64_t begin,
                         std::int64_t width, DType compute) {
  T* block = scratch<T>().block.resize_scratch(count * width);
  for (std::int64_t i = 0; i < count; ++i) {
    T* to = block + i * width;
    if constexpr (sizeof(T) == sizeof(float)) {
      read_part(w, first + i, begin, width, to);
      if (w.dtype != DType::bf16) round_to(compute, to, width);
    } else if (w.dtype == DType::bf16) {
      std::copy_n(stored_block<T>(w, first + i, begin).data, width, to);
    } else if (w.dtype == DType::f32) {
      leaf_kernels().f32_to_bf16(stored_block<float>(w, first + i, begin).data, to, width);
    } else {
      float* row = scratch<T>().row.resize(width);
      read_part(w, first + i, begin, width, row);
      leaf_kernels().f32_to_bf16(row, to, width);
    }
  }
  return {block, width};
}

/// The kernels for operands of T.
template <class T>
struct Kernels {
  std::int64_t group;
  void (*dot)(const DotTile<T, T>&);
  void (*sum)(const SumTile<T, T>&);
  void (*dot_of_bf16)(const DotTile<bf16, T>&);
  void (*sum_of_bf16)(const SumTile<bf16, T>&);
};

template <class T>
Kernels<T> kernels() {
  if constexpr (sizeof(T) == sizeof(bf16)) {
    return {bf16_pair_group, dot_bf16_pairs, sum_bf16_pairs, dot_bf16_pairs, sum_bf16_pairs};
  } else {
    const ProductKernels& k = product_kernels(selected_isa());
    return {k.group, k.dot_f32, k.sum_f32, k.dot_bf16, k.sum_bf16};
  }
}

/// Tokens in tiles of dot_tokens. Few that are left over would leave registers idle: they get some of the
/// tile before.
struct TokenTiles {
  static constexpr std::int64_t few = 8;
  std::int64_t tokens, count;

  explicit TokenTiles(std::int64_t all) : tokens(all), count(parts(all, dot_tokens)) {}
  std::int64_t first(std::int64_t tile) const {
    if (tile >= count) return tokens;
    const std::int64_t at = tile * dot_tokens;
    return tile > 0 && tokens - at <= few ? at - few : at;
  }
  std::int64_t size(std::int64_t tile) const { return first(tile + 1) - first(tile); }
};

/// Pieces of a product: a block of outputs, and some tiles of tokens. If there are few outputs, the tokens
/// are cut too, which changes no bit.
struct Pieces {
  static constexpr std::int64_t least_tiles = 8;  // converting the weights must be little beside them
  std::int64_t blocks, tiles, each;

  Pieces(std::int64_t outputs, std::int64_t of_tokens)
      : blocks(parts(outputs, dot_outputs)), tiles(of_tokens) {
    const std::int64_t across = std::min(parts(wanted_pieces(), blocks), tiles / least_tiles);
    each = parts(tiles, std::max(across, std::int64_t{1}));
  }
  std::int64_t across() const { return parts(tiles, each); }
};

/// What the tiles of tokens over a block of weights fetch meanwhile, where weights are read as they are
/// stored: the thread's next block, spread over all tiles, for a CPU can wait for few lines at a time. Over a
/// block that was not fetched, the first tile fetches the rows that it comes to next.
class FetchAhead {
 public:
  FetchAhead(const std::byte* block, std::int64_t bytes, std::int64_t near_bytes, bool goes_on,
             std::int64_t tiles)
      : next_(block + bytes), bytes_(bytes) {
    thread_local const std::byte* fetched = nullptr;
    if (fetched != block || tiles == 1) {
      near_ = block + near_bytes;
      --tiles;
    }
    step_ = goes_on && tiles > 0 ? parts(line, tiles) : 0;
    fetched = step_ > 0 ? next_ : nullptr;
  }

  /// Sets what the next tile fetches: a line with each step, or a part of it.
  template <class Tile>
  void set(Tile& tile) {
    tile.ahead = near_ ? near_ : next_;
    tile.ahead_step = near_ ? line : step_;
    if (!near_) next_ += bytes_ / line * step_;
    near_ = nullptr;
  }

 private:
  static constexpr std::int64_t line = 64;
  const std::byte *near_ = nullptr, *next_;
  std::int64_t bytes_, step_;
};

template <class T>
void multiply(MatrixView<const float> x, const Weight& w, DType compute, MatrixView<float> y) {
  if (x.rows == 0 || w.rows == 0) return;
  const std::int64_t padded = packed_depth(x.cols);
  T* const packed = scratch<T>().tokens.resize_scratch(round_up(x.rows, dot_tokens) * padded);
  const TokenTiles tiles(x.rows);
  parallel_for(tiles.count, dot_tokens * padded * work_of_value, [&](std::int64_t i) {
    const std::int64_t t = tiles.first(i);
    pack_tokens(x.block(t, tiles.size(i)), compute, kernels<T>().group, packed + t * padded);
  });
  // For one token, bf16 weights are widened as they are read.
  const bool is_widened = w.dtype == DType::bf16 && sizeof(T) == sizeof(float) && x.rows == 1;
  const bool is_in_place = is_stored<T>(w, compute);
  const Pieces pieces(w.rows, tiles.count);
  const std::int64_t across = pieces.across();
  parallel_for(pieces.blocks * across, work_of(dot_outputs, x) / across, [&](std::int64_t i) {
    const std::int64_t first = i / across * dot_outputs, count = std::min(dot_outputs, w.rows - first);
    const std::int64_t begin = i % across * pieces.each, end = std::min(begin + pieces.each, tiles.count);
    const auto run = [&]<class V>(const Block<V>& weights, const auto& dot) {
      DotTile<V, T> tile{weights.data, weights.stride, count, x.cols, packed, 0, nullptr, 0,
                         y.data,       y.stride};
      tile.ahead = reinterpret_cast<const std::byte*>(weights.data);
      const std::int64_t row = x.cols * size_of(w.dtype);
      FetchAhead ahead(tile.ahead, count * row, 8 * row, first + count < w.rows, end - begin);
      for (std::int64_t b = begin; b < end; ++b) {
        const std::int64_t t = tiles.first(b);
        tile.tokens = packed + t * padded;
        tile.num_tokens = tiles.size(b);
        tile.y = y.row(t) + first;
        if (is_in_place) ahead.set(tile);
        dot(tile);
      }
    };
    if (is_widened)
      run(stored_block<bf16>(w, first, 0), kernels<T>().dot_of_bf16);
    else if (is_in_place)
      run(stored_block<T>(w, first, 0), kernels<T>().dot);
    else
      run(converted_block<T>(w, first, count, 0, w.cols, compute), kernels<T>().dot);
  });
}

/// Columns [first, first + count) of all tokens.
template <class V, class T>
void sum_up_block(Block<V> weights, std::int64_t first, std::int64_t count, MatrixView<const T> tokens,
                  void (*sum)(const SumTile<V, T>&), MatrixView<float> y) {
  for (std::int64_t t = 0; t < tokens.rows; t += sum_tokens) {
    sum({weights.data, weights.stride, count, tokens.cols, tokens.row(t), tokens.stride,
         std::min(sum_tokens, tokens.rows - t), y.row(t) + first, y.stride});
  }
}

template <class T>
void multiply_transposed(MatrixView<const float> x, const Weight& w, DType compute, MatrixView<float> y) {
  const std::int64_t stride = round_up(x.cols, 2);
  T* const memory = scratch<T>().tokens.resize_scratch(x.rows * stride);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    convert(x.row(t), compute, memory + t * stride, x.cols);
    std::fill(memory + t * stride + x.cols, memory + (t + 1) * stride, T{});
  }
  const MatrixView<const T> tokens(memory, x.rows, x.cols, stride);
  const bool is_few = x.rows <= sum_tokens;
  const bool is_wide = w.dtype == DType::bf16 && sizeof(T) == sizeof(float) && is_few;
  const std::int64_t width = is_few ? few_tokens_columns : block_columns;
  parallel_for(parts(w.cols, width), work_of(width, x), [&](std::int64_t i) {
    const std::int64_t first = i * width, count = std::min(width, w.cols - first);
    if (is_wide)
      sum_up_block(stored_block<bf16>(w, 0, first), first, count, tokens, kernels<T>().sum_of_bf16, y);
    else if (is_few && is_stored<T>(w, compute))
      sum_up_block(stored_block<T>(w, 0, first), first, count, tokens, kernels<T>().sum, y);
    else
      sum_up_block(converted_block<T>(w, 0, w.rows, first, count, compute), first, count, tokens,
                   kernels<T>().sum, y);
  });
}

bool multiplies_bf16_pairs(DType compute) {
  static const bool has_kernels = selected_isa() == Isa::avx512_bf16;
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
  if (multiplies_bf16_pairs(compute)) return multiply<bf16>(x, w, compute, y);
  multiply<float>(x, w, compute, y);
}

void matmul_transposed(MatrixView<const float> x, const Weight& w, DType compute, MatrixView<float> y) {
  require(x.cols == w.rows && y.cols == w.cols && x.rows == y.rows,
          "matmul_transposed: x [{}, {}], W [{}, {}], y [{}, {}] do not fit", x.rows, x.cols, w.rows, w.cols,
          y.rows, y.cols);
  if (multiplies_bf16_pairs(compute)) return multiply_transposed<bf16>(x, w, compute, y);
  multiply_transposed<float>(x, w, compute, y);
}

}  // namespace mla
