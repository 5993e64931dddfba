#include "mla/kernels/panel_matmul.h"

#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"
#include "mla/kernels/leaf.h"

namespace mla {
namespace {

/// Units of depth after which sums go to memory: panels of that depth stay in a core's caches. What was
/// summed so far is added to in this order, whoever does it.
constexpr std::int64_t chunk_units = 256;
/// Panels of a that one piece of work passes over with each panel of b.
constexpr std::int64_t most_panels = 4;
/// What of b is packed as one piece of work: a part of a chunk, of so many panels.
constexpr std::int64_t pack_units = 32, pack_panels = 16;
static_assert(chunk_units % pack_units == 0);

/// `side` of the operand's side from `first` on, and `depth` of its depth from `value` on.
PanelSource source(PanelOperand o, std::int64_t first, std::int64_t side, std::int64_t value,
                   std::int64_t depth, std::int64_t panel_stride) {
  const float* x = o.depth_first ? o.x.row(value) + first : o.x.row(first) + value;
  return {x, o.x.stride, depth, side, panel_stride};
}

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

}  // namespace

// ---------------------------------------------------------------- the factor

std::int64_t PanelFactor::units() const {
  return parts(depth_, kernels_->values);
}
std::int64_t PanelFactor::chunks() const {
  return parts(units(), chunk_units);
}
std::int64_t PanelFactor::panels() const {
  return parts(side_, kernels_->cols);
}
std::int64_t PanelFactor::first_value(std::int64_t chunk) const {
  return chunk * chunk_units * kernels_->values;
}
std::int64_t PanelFactor::values_of(std::int64_t chunk) const {
  return std::min(chunk_units * kernels_->values, depth_ - first_value(chunk));
}
std::int64_t PanelFactor::units_of(std::int64_t chunk) const {
  return parts(values_of(chunk), kernels_->values);
}
std::int64_t PanelFactor::place(std::int64_t chunk, std::int64_t panel) const {
  return (chunk * chunk_units * panels() + panel * units_of(chunk)) * kernels_->cols;
}

/// pack_units of the depth and pack_panels panels, or what there is of them.
void PanelFactor::pack_part(PanelOperand b, std::int64_t first_unit, std::int64_t first_panel) {
  const std::int64_t chunk = first_unit / chunk_units, cols = kernels_->cols;
  const std::int64_t count = std::min(pack_units, units() - first_unit);
  const std::int64_t some = std::min(pack_panels, panels() - first_panel);
  const std::int64_t col = first_panel * cols, value = first_unit * kernels_->values;
  const std::int64_t panel_stride = units_of(chunk) * cols;
  PanelUnit* const out = packed_.data() + place(chunk, first_panel) + first_unit % chunk_units * cols;
  (b.depth_first ? kernels_->pack_cols : kernels_->pack_cols_transposed)(
      source(b, col, std::min(some * cols, side_ - col), value,
             std::min(count * kernels_->values, depth_ - value), panel_stride),
      out);
  for (std::int64_t j = 0; rounds_ && j < some; ++j) round_units(out + j * panel_stride, count * cols);
}

void PanelFactor::pack(PanelOperand b, DType compute) {
  const bool has_pairs = compute == DType::bf16 && selected_isa() == Isa::avx512_bf16;
  kernels_ = has_pairs ? &avx512_bf16_panels : &panel_kernels(selected_isa());
  rounds_ = compute == DType::bf16 && !has_pairs;
  side_ = b.side();
  depth_ = b.depth();
  packed_.resize(units() * panels() * kernels_->cols);
  const std::int64_t groups = parts(panels(), pack_panels);
  if (groups == 0) return;
  parallel_for(groups * parts(units(), pack_units),
               pack_units * kernels_->values * parts(side_, groups) * work_of_value,
               [&](std::int64_t i) { pack_part(b, i / groups * pack_units, i % groups * pack_panels); });
}

// ---------------------------------------------------------------- the product

struct PanelFactor::Product {
  const PanelFactor& b;
  const PanelKernels& kernels;
  PanelOperand a;
  bool adds;
  MatrixView<float> c;

  /// Panels [first, first + count) of a with panels [begin, end) of b.
  struct Piece {
    std::int64_t first, count, begin, end;
  };

  std::int64_t row_panels() const { return parts(c.rows, kernels.rows); }

  /// Panels of a, chunk_units * rows of a panel apart.
  void pack_a(std::int64_t chunk, const Piece& piece, PanelUnit* out) const {
    const std::int64_t row = piece.first * kernels.rows, panel_stride = chunk_units * kernels.rows;
    (a.depth_first ? kernels.pack_rows : kernels.pack_rows_transposed)(
        source(a, row, std::min(piece.count * kernels.rows, c.rows - row), b.first_value(chunk),
               b.values_of(chunk), panel_stride),
        out);
    for (std::int64_t i = 0; b.rounds_ && i < piece.count; ++i)
      round_units(out + i * panel_stride, b.units_of(chunk) * kernels.rows);
  }

  void run(const Piece& piece) const {
    thread_local Buffer<PanelUnit> memory;
    const std::int64_t rows = kernels.rows, cols = kernels.cols, size = chunk_units * rows;
    PanelUnit* const packed = memory.resize(most_panels * size);
    for (std::int64_t chunk = 0; chunk < b.chunks(); ++chunk) {
      pack_a(chunk, piece, packed);
      const std::int64_t units = b.units_of(chunk);
      const PanelUnit* panel = b.packed_.data() + b.place(chunk, piece.begin);
      for (std::int64_t j = piece.begin; j < piece.end; ++j, panel += units * cols) {
        for (std::int64_t i = 0; i < piece.count; ++i) {
          const std::int64_t row = (piece.first + i) * rows, col = j * cols;
          kernels.multiply({packed + i * size, panel, units, std::min(rows, c.rows - row),
                            std::min(cols, c.cols - col), adds || chunk > 0, c.row(row) + col, c.stride});
        }
      }
    }
  }

  /// How the pieces are cut changes no bit. Few rows are cut by columns as well.
  void run() const {
    const std::int64_t wanted = wanted_pieces();
    const std::int64_t count = std::clamp(row_panels() / wanted, std::int64_t{1}, most_panels);
    const std::int64_t down = parts(row_panels(), count);
    const std::int64_t wide = down >= wanted ? b.panels() : parts(b.panels() * down, wanted);
    const std::int64_t across = parts(b.panels(), wide);
    parallel_for(down * across, count * kernels.rows * wide * kernels.cols * b.depth_, [&](std::int64_t i) {
      const std::int64_t first = i / across * count, begin = i % across * wide;
      run({first, std::min(count, row_panels() - first), begin, std::min(begin + wide, b.panels())});
    });
  }
};

void PanelFactor::multiply(PanelOperand a, bool adds, MatrixView<float> c) const {
  require(a.depth() == depth_ && c.rows == a.side() && c.cols == side_,
          "panel matmul: a [{}, {}], b [{}, {}], c [{}, {}] do not fit", a.side(), a.depth(), depth_, side_,
          c.rows, c.cols);
  if (c.rows == 0 || c.cols == 0) return;
  if (depth_ > 0) return Product{*this, *kernels_, a, adds, c}.run();
  for (std::int64_t i = 0; i < c.rows && !adds; ++i) std::fill_n(c.row(i), c.cols, 0.0f);
}

// ---------------------------------------------------------------- of a linear layer

void panel_matmul(MatrixView<const float> x, const Weight& w, DType compute, MatrixView<float> y) {
  require(w.dtype == DType::f32, "panel matmul: found a weight of {}, expected f32", name_of(w.dtype));
  thread_local PanelFactor factor;
  const MatrixView<const float> stored(reinterpret_cast<const float*>(w.data), w.first_row + w.rows, w.cols);
  factor.pack(rows_as_side(stored.block(w.first_row, w.rows)), compute);
  factor.multiply(rows_as_side(x), false, y);
}

}  // namespace mla
