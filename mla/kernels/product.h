#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/cpu.h"
#include "mla/core/dtype.h"
#include "mla/core/parts.h"

namespace mla {

// Matrix products, tile by tile. The weights are read where they lie, row-major; only tokens are packed. Each
// value of y is one fixed sequence of multiply-adds over the full depth, so neither the tokens beside it nor
// the tile change a bit of it.

/// Most rows and tokens of one DotTile, and most tokens of one SumTile.
constexpr std::int64_t dot_outputs = 64;
constexpr std::int64_t dot_tokens = 24;
constexpr std::int64_t dot_groups = 3;
constexpr std::int64_t sum_tokens = 24;

/// Values that one step of a dot product takes from each token and each weight row: 8 bytes.
template <class Token>
constexpr std::int64_t dot_step = 8 / static_cast<std::int64_t>(sizeof(Token));

// Tokens are packed in sets, [set][step][tokens of a set][values of a step]; zeros fill up.

/// Tokens of a set, if `group` of them fill a vector of the kernel: even shares of whole groups, three at
/// most, which are multiplied side by side. A lone token is a set.
constexpr std::int64_t set_tokens(std::int64_t num_tokens, std::int64_t group) {
  if (num_tokens == 1) return 1;
  const std::int64_t groups = parts(num_tokens, group);
  return parts(groups, parts(groups, dot_groups)) * group;
}
/// Values of a packed token: its depth, rounded up.
constexpr std::int64_t packed_depth(std::int64_t depth) {
  return (depth + 7) / 8 * 8;
}

/// y[t][r] = sum over d of weights[r][d] * tokens[t][d].
template <class Weight, class Token>
struct DotTile {
  const Weight* weights;  ///< [rows][depth], rows weight_stride values apart
  std::int64_t weight_stride;
  std::int64_t rows;  ///< 1 to dot_outputs
  std::int64_t depth;
  const Token* tokens;      ///< packed, of this kernel's group
  std::int64_t num_tokens;  ///< 1 to dot_tokens
  const std::byte* ahead;   ///< if there are several tokens: memory to be fetched meanwhile, in order
  std::int64_t ahead_step;  ///< bytes of it with each step of each block of rows (product_dot.h); at most 64
  float* y;                 ///< token t's values begin at y + t * y_stride
  std::int64_t y_stride;
};

/// y[t][c] = sum over d of tokens[t][d] * weights[d][c].
template <class Weight, class Token>
struct SumTile {
  const Weight* weights;  ///< [depth][cols], rows weight_stride values apart
  std::int64_t weight_stride;
  std::int64_t cols;
  std::int64_t depth;
  const Token* tokens;  ///< [num_tokens][token_stride]; bf16: an odd depth is followed by a zero
  std::int64_t token_stride;
  std::int64_t num_tokens;  ///< 1 to sum_tokens
  float* y;
  std::int64_t y_stride;
};

/// Products in f32 of one instruction set, with weights of f32 or bf16. A dot product is two sums, one of the
/// values at even places and one of those at odd places.
struct ProductKernels {
  std::int64_t group;  ///< of tokens, see set_tokens
  void (*dot_f32)(const DotTile<float, float>&);
  /// One token only: for more it is better to widen the weights first.
  void (*dot_bf16)(const DotTile<bf16, float>&);
  void (*sum_f32)(const SumTile<float, float>&);
  void (*sum_bf16)(const SumTile<bf16, float>&);
};

/// The products of `isa`. REQUIRES supports(isa).
const ProductKernels& product_kernels(Isa isa);

// One definition per instruction-set file.
extern const ProductKernels scalar_products;
extern const ProductKernels avx2_products;
extern const ProductKernels avx512_products;

// Products of bf16 pairs, in avx512_bf16.cpp. REQUIRES supports(Isa::avx512_bf16).
constexpr std::int64_t bf16_pair_group = 8;
void dot_bf16_pairs(const DotTile<bf16, bf16>& tile);
void sum_bf16_pairs(const SumTile<bf16, bf16>& tile);

}  // namespace mla
