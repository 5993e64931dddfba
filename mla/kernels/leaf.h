#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/cpu.h"
#include "mla/core/dtype.h"

namespace mla {

/// Rows of keys and values that one leaf call attends to, for a group of heads that share them. All pointers
/// are to memory of the caller; nothing is kept.
struct AttendTile {
  static constexpr std::int64_t max_rows = 64;

  const float* query;  ///< [heads][query_stride], the first d_qk of each used
  std::int64_t query_stride;
  std::int64_t heads;
  std::int64_t d_qk;
  std::int64_t d_v;
  float scale;                   ///< multiplies each score before the softmax
  const std::byte* const* rows;  ///< [num_rows] cached rows, in order of position
  std::int64_t num_rows;         ///< 1 to max_rows, all of them visible
  std::int64_t key_offset;       ///< bytes from a row's start to its key
  std::int64_t value_offset;     ///< bytes from a row's start to its value
  float* max;                    ///< [heads] running maximum of the scaled scores; -inf before the first row
  float* sum;                    ///< [heads] running sum of exp(score - max)
  float* acc;                    ///< [heads][d_v] running sum of exp(score - max) * value
};

/// The leaf kernels of one instruction set. They use one thread, allocate nothing and never fail; any count
/// may be 0 unless said otherwise, and no pointer needs an alignment beyond its element's.
struct LeafKernels {
  Isa isa;
  /// Online softmax over a tile of f32 rows.
  void (*attend_f32)(const AttendTile&);
  /// Online softmax over a tile of bf16 rows; the arithmetic is f32.
  void (*attend_bf16)(const AttendTile&);
  /// out[i] = x[i] * weight[i] / sqrt(mean(x^2) + epsilon).  out may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, float* out, std::int64_t n);
  /// out[i] = silu(gate[i]) * up[i], silu(t) = t / (1 + exp(-t)).  out may be gate or up.
  void (*swiglu)(const float* gate, const float* up, float* out, std::int64_t n);
  /// y[i] += scale * x[i].
  void (*add_scaled)(const float* x, float scale, float* y, std::int64_t n);
  /// f32 from bf16 (exact).
  void (*bf16_to_f32)(const bf16* x, float* out, std::int64_t n);
  /// bf16 from f32, to nearest, ties to even; a NaN stays a NaN.
  void (*f32_to_bf16)(const float* x, bf16* out, std::int64_t n);
  /// sum of a[i] * b[i].
  float (*dot)(const float* a, const float* b, std::int64_t n);
};

/// The kernels of `isa`. REQUIRES supports(isa).
const LeafKernels& leaf_kernels(Isa isa);

/// The kernels of selected_isa().
const LeafKernels& leaf_kernels();

// One definition per instruction-set file.
extern const LeafKernels scalar_kernels;
extern const LeafKernels avx2_kernels;
extern const LeafKernels avx512_kernels;

}  // namespace mla
