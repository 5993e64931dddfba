#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// How a row of a table is stored: plain values, or a latent row of FlashMLA's (its README and
/// tests/quant.py): fp8_656 is 512 e4m3, 4 scales in f32, one per 128, and 64 bf16; fp8_584 is 448 e4m3 and
/// 64 bf16, with 7 scales of one byte, powers of two, one per 64, at the end of the page: 8 bytes a row
/// behind all its rows of 576.
enum class RowFormat : std::uint8_t { f32, bf16, f16, fp8_656, fp8_584 };

/// Rows in pages of equal size, numbered page by page: a whole paged cache of one layer, one kv head.
struct RowTable {
  RowFormat format = RowFormat::f32;
  const std::byte* data = nullptr;
  std::int64_t pages = 0;
  std::int64_t page_rows = 1;
  std::int64_t page_bytes = 0;  ///< from one page to the next
  std::int64_t row_bytes = 0;   ///< from one row of a page to the next
  std::int64_t width = 0;       ///< values of a row; 576 and 512 for the fp8 formats

  std::int64_t rows() const { return pages * page_rows; }
  /// The type that holds a row's values: bf16, or f32 for f32 and f16 rows. fp8 values are rounded to bf16,
  /// as FlashMLA does, which is exact where scales are powers of two.
  DType value_type() const;
  /// Writes row `row`'s values as value_type(). REQUIRES 0 <= row < rows().
  void read(std::int64_t row, std::byte* values, const LeafKernels& leaf) const;
};

}  // namespace mla
