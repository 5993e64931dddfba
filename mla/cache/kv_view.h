#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/cache/row_layout.h"
#include "mla/core/buffer.h"

namespace mla {

/// What an attention kernel may read: `length` rows of one layer of one sequence, wherever their pages lie. A
/// dense tensor is a view with one page. Slots beyond `length` are never read.
struct KvView {
  DType type = DType::f32;
  const std::byte* const* pages =
      nullptr;                   ///< [ceil(length / page_rows)] block table: each page's first byte
  std::int64_t page_offset = 0;  ///< bytes from a page's first byte to this layer's first row
  std::int64_t page_rows = 1;
  std::int64_t row_bytes = 0;  ///< from row to row; at least what is read of a head's row
  std::int64_t length = 0;
  std::int64_t key_offset = 0;    ///< bytes from a head's start to its key
  std::int64_t value_offset = 0;  ///< bytes from a head's start to its value
  std::int64_t head_bytes = 0;  ///< bytes from one kv head's start to the next one's, in a row or far from it

  const std::byte* row(std::int64_t i) const {
    return pages[i / page_rows] + page_offset + i % page_rows * row_bytes;
  }

  /// Bytes of a row from a head's start to the end of its key and value; of quantised latents all.
  std::int64_t head_row_bytes(std::int64_t d_qk, std::int64_t d_v) const;

  /// The rows [first, first + count) in runs of four, `first` being a multiple of four: runs[i] is row first
  /// + 4 i plus `offset` bytes, with the next three rows at row_bytes from it. A run that crosses pages or
  /// ends behind the last row is copied into `copies`: `bytes` of each row from there on, and zeros for rows
  /// that do not exist. REQUIRES bytes <= row_bytes.
  void list_runs(std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t bytes,
                 const std::byte** runs, Buffer<std::byte>& copies) const;
};

/// A dense tensor of `length` rows as a view. `page` must outlive it and point to the tensor's first byte.
inline KvView dense_view(const RowLayout& layout, const std::byte* const& page, std::int64_t length) {
  return {layout.type(),
          &page,
          0,
          length > 0 ? length : 1,
          layout.bytes(),
          length,
          layout.key_offset(),
          layout.value_offset(),
          layout.head_bytes()};
}

}  // namespace mla
