#include "mla/kernels/matmul_backward.h"

#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/leaf.h"

namespace mla {
namespace {

/// Units of depth after which sums go to memory: panels of that depth stay in a core's caches. What was
/// summed so far is added to in this order, whoever does it.
constexpr std::int64_t chunk_units = 256;
/// Panels of a that one piece of work passes over with each panel of b.
constexpr std::int64_t most_panels = 4;

std::int64_t parts(std::int64_t n, std::int64_t size) {
  return (n + size - 1) / size;
}

/// c [m, n] = or += a b, a given as [m, depth] or as [depth, m], b [depth, n].
struct Product {
  const PanelKernels& kernels;
  bool rounds;  // operands of f32 to bf16
  MatrixView<const float> a, b;
  bool a_is_transposed;  // is [m, depth]
  bool adds;
  MatrixView<float> c;

  std::int64_t depth() const { return b.rows; }
  std::int64_t units() const { return parts(depth(), kernels.values); }
  std::int64_t chunks() const { return parts(units(), chunk_units); }
  std::int64_t row_panels() const { return parts(c.rows, kernels.rows); }
  std::int64_t col_panels() const { return parts(c.cols, kernels.cols); }
  std::int64_t first_value(std::int64_t chunk) const { return chunk * chunk_units * kernels.values; }
  std::int64_t values_of(std::int64_t chunk) const {
    return std::min(chunk_units * kernels.values, depth() - first_value(chunk));
  }
  std::int64_t units_of(std::int64_t chunk) const { return parts(values_of(chunk), kernels.values); }
  /// Of b's packed panels, chunk by chunk.
  std::int64_t panel_at(std::int64_t chunk, std::int64_t panel) const {
    return (chunk * chunk_units * col_panels() + panel * units_of(chunk)) * kernels.cols;
  }
};

/// Packed f32 rounded to bf16.
void round_units(PanelUnit* units, std::int64_t n) {
  constexpr std::int64_t most = 256;
  bf16 rounded[most];
  float* x = reinterpret_cast<float*>(units);
  for (std::int64_t i = 0; i < n; i += most) {
    leaf_kernels().f32_to_bf16(x + i, rounded, std::min(most, n - i));
    leaf_kernels().bf16_to_f32(rounded, x + i, std::min(most, n - i));
  }
}

void pack_b(const Product& p, std::int64_t chunk, std::int64_t panel, PanelUnit* packed) {
  const std::int64_t col = panel * p.kernels.cols;
  PanelUnit* const out = packed + p.panel_at(chunk, panel);
  p.kernels.pack_cols({p.b.row(p.first_value(chunk)) + col, p.b.stride, p.values_of(chunk),
                       std::min(p.kernels.cols, p.b.cols - col)},
                      out);
  if (p.rounds) round_units(out, p.units_of(chunk) * p.kernels.cols);
}

void pack_a(const Product& p, std::int64_t chunk, std::int64_t panel, PanelUnit* out) {
  const std::int64_t row = panel * p.kernels.rows, first = p.first_value(chunk);
  const PanelSource source{p.a_is_transposed ? p.a.row(row) + first : p.a.row(first) + row, p.a.stride,
                           p.values_of(chunk), std::min(p.kernels.rows, p.c.rows - row)};
  (p.a_is_transposed ? p.kernels.pack_rows_transposed : p.kernels.pack_rows)(source, out);
  if (p.rounds) round_units(out, p.units_of(chunk) * p.kernels.rows);
}

/// Panels [first, first + count) of a with panels [begin, end) of b.
struct Piece {
  std::int64_t first, count, begin, end;
};

void multiply_piece(const Product& p, const Piece& piece, const PanelUnit* packed) {
  thread_local Buffer<PanelUnit> memory;
  const std::int64_t rows = p.kernels.rows, cols = p.kernels.cols, size = chunk_units * rows;
  PanelUnit* const a = memory.resize(most_panels * size);
  for (std::int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
    for (std::int64_t i = 0; i < piece.count; ++i) pack_a(p, chunk, piece.first + i, a + i * size);
    for (std::int64_t j = piece.begin; j < piece.end; ++j) {
      for (std::int64_t i = 0; i < piece.count; ++i) {
        const std::int64_t row = (piece.first + i) * rows, col = j * cols;
        p.kernels.multiply({a + i * size, packed + p.panel_at(chunk, j), p.units_of(chunk),
                            std::min(rows, p.c.rows - row), std::min(cols, p.c.cols - col),
                            p.adds || chunk > 0, p.c.row(row) + col, p.c.stride});
      }
    }
  }
}

void run(const Product& p, Buffer<PanelUnit>& memory) {
  if (p.c.rows == 0 || p.c.cols == 0) return;
  if (p.depth() == 0) {
    for (std::int64_t i = 0; i < p.c.rows && !p.adds; ++i) std::fill_n(p.c.row(i), p.c.cols, 0.0f);
    return;
  }
  PanelUnit* const packed = memory.resize(p.units() * p.col_panels() * p.kernels.cols);
  parallel_for(p.chunks() * p.col_panels(), chunk_units * p.kernels.values * p.kernels.cols * work_of_value,
               [&](std::int64_t i) { pack_b(p, i / p.col_panels(), i % p.col_panels(), packed); });

  // How the pieces are cut changes no bit. Few rows are cut by columns as well.
  const std::int64_t wanted = wanted_pieces();
  const std::int64_t count = std::clamp(p.row_panels() / wanted, std::int64_t{1}, most_panels);
  const std::int64_t down = parts(p.row_panels(), count);
  const std::int64_t wide = down >= wanted ? p.col_panels() : parts(p.col_panels() * down, wanted);
  const std::int64_t across = parts(p.col_panels(), wide);
  parallel_for(
      down * across, count * p.kernels.rows * wide * p.kernels.cols * p.depth(), [&](std::int64_t i) {
        const std::int64_t first = i / across * count, begin = i % across * wide;
        multiply_piece(
            p,
            {first, std::min(count, p.row_panels() - first), begin, std::min(begin + wide, p.col_panels())},
            packed);
      });
}

Product product_of(DType compute, MatrixView<const float> a, bool a_is_transposed, MatrixView<const float> b,
                   bool adds, MatrixView<float> c) {
  const bool has_pairs = compute == DType::bf16 && selected_isa() == Isa::avx512_bf16;
  return {has_pairs ? avx512_bf16_panels : panel_kernels(selected_isa()),
          compute == DType::bf16 && !has_pairs,
          a,
          b,
          a_is_transposed,
          adds,
          c};
}

}  // namespace

void matmul_backward_input(MatrixView<const float> d_y, MatrixView<const float> weight, DType compute,
                           bool adds, Buffer<PanelUnit>& packed, MatrixView<float> d_x) {
  require(d_y.cols == weight.rows && d_x.cols == weight.cols && d_x.rows == d_y.rows,
          "matmul backward: d_y [{}, {}], W [{}, {}], d_x [{}, {}] do not fit", d_y.rows, d_y.cols,
          weight.rows, weight.cols, d_x.rows, d_x.cols);
  run(product_of(compute, d_y, true, weight, adds, d_x), packed);
}

void matmul_backward_weight(MatrixView<const float> d_y, MatrixView<const float> x, DType compute,
                            Buffer<PanelUnit>& packed, MatrixView<float> d_weight) {
  require(d_y.rows == x.rows && d_weight.rows == d_y.cols && d_weight.cols == x.cols,
          "matmul backward: d_y [{}, {}], x [{}, {}], d_W [{}, {}] do not fit", d_y.rows, d_y.cols, x.rows,
          x.cols, d_weight.rows, d_weight.cols);
  run(product_of(compute, d_y, false, x, true, d_weight), packed);
}

}  // namespace mla
