#pragma once
#include "mla/core/buffer.h"
#include "mla/kernels/attend.h"

namespace mla {

/// A tile of cached rows, made f32 rows for a kernel that knows no others: bf16, f16, and latents in fp8 and
/// int8 (latent_row.h with d_c = d_v). A thread keeps one and fills it time and again.
class WidenedRows {
 public:
  static constexpr std::int64_t most_rows = f32_tile_rows(16);

  /// Rows [first, first + count) of `rows`, as far as there are so many; at most most_rows. What is returned
  /// refers to this.
  AttendRows fill(DType type, const AttendQueries& q, const AttendRows& rows, std::int64_t first,
                  std::int64_t count, const LeafKernels& leaf);

 private:
  Buffer<float> memory_;
  const std::byte* runs_[most_rows / AttendRows::run];
  std::int32_t visible_[AttendQueries::max_count];
};

}  // namespace mla
