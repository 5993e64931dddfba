#pragma once
#include <cstdint>

#include "mla/core/cpu.h"

namespace mla {

// Attention in training, forward and backward, tile by tile: some queries of one head against some rows of
// its kv head. All of a tile is dense f32 that attend_forward or attend_backward copied there, so the kernels
// meet neither strides of whole tokens (whose rows would share the same few sets of the L1 cache) nor the
// ends of anybody's memory.

/// Most queries and keys of one tile.
constexpr std::int64_t gradient_queries = 64, gradient_keys = 96;

/// Floats from row to row of a tile of `width` columns: whole cache lines, so that vectors may run past the
/// columns, and an odd number of them, so that a column's lines spread over all sets of the L1 cache.
constexpr std::int64_t gradient_stride(std::int64_t width) {
  return ((width + 15) / 16 | 1) * 16;
}

/// One tile. Matrices of d_qk columns have rows gradient_stride(d_qk) floats apart, those of d_v columns
/// gradient_stride(d_v), those of gradient_keys columns gradient_keys. There is memory for gradient_queries
/// or gradient_keys rows of each, whatever the counts are; what lies beyond counts and columns is read and
/// written, but changes nothing within them.
struct GradientTile {
  std::int64_t d_qk, d_v;
  std::int64_t queries, keys;  ///< at least 1
  std::int64_t shift;          ///< query i sees key j if j <= i + shift; gradient_keys or more: all see all
  float scale;
  const float* q;            ///< [queries][d_qk]
  const float* d_out;        ///< [queries][d_v], zeros behind d_v
  const float* lse;          ///< [queries]
  const float* delta;        ///< [queries] d_out . out
  const float* k;            ///< [keys][d_qk]
  const float* k_by_column;  ///< [d_qk][gradient_keys]
  const float* v_by_column;  ///< [d_v][gradient_keys]
  float* weights;            ///< [queries][gradient_keys] working memory
  float* d_scores;           ///< [queries][gradient_keys] working memory
  float* d_q;                ///< [queries][d_qk] added to
  float* d_k;                ///< [keys][d_qk] added to
  float* d_values;           ///< [keys][d_v], rows d_value_stride floats apart; added to; may be d_k
  std::int64_t d_value_stride;
};

/// One tile of the forward, as GradientTile but for what is made: the running sums of a softmax.
struct ForwardTile {
  std::int64_t d_qk, d_v;
  std::int64_t queries, keys;
  std::int64_t shift;
  float scale;
  const float* q;
  const float* k_by_column;
  const float* v;  ///< [keys][d_v], zeros behind d_v
  float* weights;  ///< [queries][gradient_keys] working memory
  float* max;      ///< [queries] largest scaled score so far; at first the lowest float
  float* sum;      ///< [queries] of exp(scaled score - max)
  float* out;      ///< [queries][d_v] of exp(scaled score - max) v
};

/// The kernels of one instruction set. They use one thread, allocate nothing and never fail.
struct GradientKernels {
  /// Adds the tile to max, sum and out.
  void (*forward)(const ForwardTile&);
  /// weights = exp(scale q k^T - lse), d_scores = scale weights (d_out v^T - delta), both 0 where a key is
  /// not seen; d_v += weights^T d_out, d_q += d_scores k, d_k += d_scores^T q.
  void (*tile)(const GradientTile&);
  /// to[c * to_stride + r] = from[r * stride + c] for r < rows, c < columns.
  void (*transpose)(const float* from, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                    float* to, std::int64_t to_stride);
};

/// The kernels of `isa`. REQUIRES supports(isa).
const GradientKernels& gradient_kernels(Isa isa);

// One definition per instruction-set file.
extern const GradientKernels scalar_gradients;
extern const GradientKernels avx2_gradients;
extern const GradientKernels avx512_gradients;

}  // namespace mla
