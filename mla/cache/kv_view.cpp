#include "mla/cache/kv_view.h"

#include <algorithm>
#include <cstring>

#include "mla/core/parts.h"
#include "mla/kernels/latent_row.h"

namespace mla {

std::int64_t KvView::head_row_bytes(std::int64_t d_qk, std::int64_t d_v) const {
  if (type == DType::f8_e4m3 || type == DType::i8) return latent_row(type, d_v, d_qk - d_v).bytes;
  return std::max(key_offset + d_qk * size_of(type), value_offset + d_v * size_of(type));
}

void KvView::list_runs(std::int64_t first, std::int64_t count, std::int64_t offset, std::int64_t bytes,
                       const std::byte** runs, Buffer<std::byte>& copies) const {
  constexpr std::int64_t size = 4;
  const std::int64_t num_runs = parts(count, size);
  const bool all_copied = page_rows % size != 0 && page_rows < length;
  std::byte* copy = copies.resize((all_copied ? num_runs : 1) * size * row_bytes);
  std::int64_t page = first / page_rows, slot = first % page_rows;
  for (std::int64_t i = 0, at = first; i < num_runs; ++i, at += size) {
    if (at + size <= length && slot + size <= page_rows) {
      runs[i] = pages[page] + page_offset + slot * row_bytes + offset;
    } else {
      const std::int64_t there = std::min(size, length - at);
      for (std::int64_t r = 0; r < there; ++r)
        std::memcpy(copy + r * row_bytes, row(at + r) + offset, static_cast<std::size_t>(bytes));
      for (std::int64_t r = there; r < size; ++r)
        std::memset(copy + r * row_bytes, 0, static_cast<std::size_t>(bytes));
      runs[i] = copy;
      copy += size * row_bytes;
    }
    for (slot += size; slot >= page_rows; slot -= page_rows) ++page;
  }
}

}  // namespace mla
