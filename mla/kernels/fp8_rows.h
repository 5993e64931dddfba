#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/latent_row.h"

namespace mla {

/// fp8 latent rows, in runs of four that lie row_stride bytes apart.
struct Fp8Rows {
  LatentRow at;
  const std::byte* const* runs;  ///< [ceil(count / 4)]
  std::int64_t row_stride;       ///< bytes
  std::int64_t count;
};

/// The rows' values, exactly, as bf16 rows [count][out_stride]. Scales are those that encode_latent writes,
/// or 0 beside codes of 0. REQUIRES supports(Isa::avx512_bf16).
void fp8_to_bf16_rows(const Fp8Rows& rows, bf16* out, std::int64_t out_stride);

}  // namespace mla
