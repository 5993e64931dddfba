#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"

namespace mla {

// Products of bf16 weights with bf16 tokens on CPUs that multiply bf16 pairs (AVX512_BF16). The weights are
// read where they lie, row-major; only the tokens are packed. Each value of y is one fixed sequence of
// multiply-adds over the full depth, so neither the tokens beside it nor the blocking change a bit of it.

/// Values that one step of a dot product takes from each token and each weight row: 16 bytes.
constexpr std::int64_t product_step = 8;
/// Most tokens of one DotTile, and most of one SumTile.
constexpr std::int64_t dot_tokens = 24;
constexpr std::int64_t sum_tokens = 8;

/// y[t][r] = sum over d of weights[r][d] * tokens[t][d].
struct DotTile {
  const bf16* weights;  ///< [rows][depth], rows weight_stride values apart
  std::int64_t weight_stride;
  std::int64_t rows;
  std::int64_t depth;
  const bf16* tokens;       ///< packed by pack_dot_tokens
  std::int64_t num_tokens;  ///< 1 to dot_tokens
  float* y;                 ///< token t's values begin at y + t * y_stride
  std::int64_t y_stride;
};
void dot_bf16(const DotTile& tile);

/// Values of a packed block of `num_tokens` tokens: their number and depth rounded up.
std::int64_t packed_size(std::int64_t num_tokens, std::int64_t depth);
/// Packs rows x[t][0..depth), rounded to bf16, for dot_bf16: [step][4 tokens][8 values], a lone token as it
/// is; zeros fill up.
void pack_dot_tokens(const float* x, std::int64_t x_stride, std::int64_t num_tokens, std::int64_t depth,
                     bf16* packed);

/// y[t][c] = sum over d of tokens[t][d] * weights[d][c].
struct SumTile {
  const bf16* weights;  ///< [depth][cols], rows weight_stride values apart
  std::int64_t weight_stride;
  std::int64_t cols;
  std::int64_t depth;
  const bf16* tokens;  ///< [num_tokens][token_stride]; an odd depth is followed by a zero
  std::int64_t token_stride;
  std::int64_t num_tokens;  ///< 1 to sum_tokens
  float* y;
  std::int64_t y_stride;
};
void sum_bf16(const SumTile& tile);

}  // namespace mla
