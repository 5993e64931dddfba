#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/leaf.h"

namespace mla {

// Quantised latent rows [c_kv | k_rope], byte by byte as in docs/cache_format.md: a code of one byte for each
// value of c_kv, then what the codes are to be multiplied by, then k_rope in bf16.

/// Where the parts of such a row lie.
struct LatentRow {
  std::int64_t d_c, d_r;
  std::int64_t scales;  ///< byte at which the scales begin; the codes begin at byte 0
  std::int64_t rope;    ///< byte at which k_rope begins
  std::int64_t bytes;   ///< of the whole row
};

/// fp8: values that share a scale. The scales are f32, one for each such block, powers of four from 4^-58 to
/// 4^59: so code times scale is a bf16 value, to the bit.
constexpr std::int64_t fp8_block = 128;

/// int8: what follows the codes. k_rope is stored divided by `scale`.
struct Int8Scale {
  std::int32_t start[2];  ///< -128 times the sum of the codes i with i / 4 even, odd
  float scale;            ///< multiplies the codes and k_rope; NaN if any of the row's values is no number
  float log2_scale;
};

/// REQUIRES type fp8 or int8, d_c >= 1, d_r >= 0.
LatentRow latent_row(DType type, std::int64_t d_c, std::int64_t d_r);

/// Quantises values [d_c + d_r]: to nearest, ties to even. A block of fp8 and a row of int8 whose c_kv has a
/// NaN or an infinity decodes to NaN altogether; values of fp8 beyond 448 * 4^59 become that.
void encode_latent(DType type, const LatentRow& at, const float* values, std::byte* row);

/// The first `count` of a row's values.
void decode_latent(DType type, const LatentRow& at, const std::byte* row, std::int64_t count, float* values,
                   const LeafKernels& leaf);

}  // namespace mla
