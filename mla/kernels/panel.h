#pragma once
#include <cstdint>

#include "mla/core/cpu.h"
#include "mla/core/dtype.h"

namespace mla {

// Products of two packed operands: both are cut into panels, and a panel of each makes one tile of the result
// in registers. Packing costs once what every tile then saves: worth it for many rows and columns, as
// training has them, whereas product.h reads weights where they lie, for few tokens.

/// 32 bits of a packed operand: one float, or two bf16 values that follow each other in depth.
using PanelUnit = std::uint32_t;

/// c[i][j] = sum over k of a[k][i] * b[k][j], or that added to what is there: one sum, k ascending.
struct PanelTile {
  const PanelUnit* a;  ///< [depth][rows of a panel]
  const PanelUnit* b;  ///< [depth][columns of a panel]
  std::int64_t depth;  ///< in units
  std::int64_t rows;   ///< of c: 1 to those of a panel
  std::int64_t cols;   ///< of c: 1 to those of a panel
  bool adds;
  float* c;
  std::int64_t c_stride;
};

/// Packs x [depth][width], or x [width][depth] if it is to be transposed, as panels [units][width of a
/// panel], one after another; zeros fill up. Rows of x are read once, whole: to a reader of a panel at a time
/// they would be short pieces of memory far apart, which no CPU fetches ahead.
struct PanelSource {
  const float* x;
  std::int64_t stride;
  std::int64_t depth;         ///< in values
  std::int64_t width;         ///< of as many panels as it takes
  std::int64_t panel_stride;  ///< units from one panel of `out` to the next
};

struct PanelKernels {
  std::int64_t rows, cols;  ///< of a panel of a, and of one of b
  std::int64_t values;      ///< of a unit: 1, or 2 of bf16
  void (*multiply)(const PanelTile&);
  void (*pack_rows)(const PanelSource&, PanelUnit* out);  ///< panels of a
  void (*pack_rows_transposed)(const PanelSource&, PanelUnit* out);
  void (*pack_cols)(const PanelSource&, PanelUnit* out);  ///< panels of b
  void (*pack_cols_transposed)(const PanelSource&, PanelUnit* out);
};

/// The kernels of `isa` for operands of f32. REQUIRES supports(isa).
const PanelKernels& panel_kernels(Isa isa);

// One definition per instruction-set file.
extern const PanelKernels scalar_panels;
extern const PanelKernels avx2_panels;
extern const PanelKernels avx512_panels;
/// Operands are rounded to bf16. REQUIRES supports(Isa::avx512_bf16).
extern const PanelKernels avx512_bf16_panels;

}  // namespace mla
