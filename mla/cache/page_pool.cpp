#include "mla/cache/page_pool.h"

#include <algorithm>
#include <utility>

#include "mla/core/error.h"

namespace mla {
namespace {

/// Rows of whole KiB would crowd into a few sets of a cache: there they lie a line further apart.
std::int64_t stride_of(std::int64_t row_bytes) {
  constexpr std::int64_t line = 64, crowded = 1024;
  return row_bytes % crowded == 0 ? row_bytes + line : row_bytes;
}

/// Rows of an even number of lines use only every other set of a cache: pages of them lie an odd number of
/// lines apart, so that a conversation's pages use all sets between them. Small pages needn't, for the
/// memory.
std::int64_t pitch_of(std::int64_t page_bytes, std::int64_t row_stride) {
  constexpr std::int64_t line = 64, least = 64 * line;
  return page_bytes >= least && row_stride % (2 * line) == 0 ? page_bytes + line : page_bytes;
}

}  // namespace

PagePool::PagePool(RowLayout layout, std::int64_t num_layers, std::int64_t page_rows, std::int64_t max_pages)
    : layout_(layout),
      row_stride_(stride_of(layout.bytes())),
      num_layers_(num_layers),
      page_rows_(page_rows),
      max_pages_(max_pages) {
  require(num_layers >= 1 && page_rows >= 1 && max_pages >= 0,
          "page pool: found {} layers, {} rows a page, {} pages, expected at least 1, 1 and 0", num_layers,
          page_rows, max_pages);
}

/// One slab of pages more: 2 MiB, or what a larger page needs.
void PagePool::grow() {
  constexpr std::int64_t slab_bytes = huge_bytes;
  const auto made = static_cast<std::int64_t>(pages_.size());
  const std::int64_t pitch = pitch_of(page_bytes(), row_stride_);
  const std::int64_t count = std::min(std::max(slab_bytes / pitch, std::int64_t{1}), max_pages_ - made);
  Buffer<std::byte> slab(std::max(slab_bytes, count * pitch));  // whole, so that it is one huge page
  pages_.reserve(pages_.size() + static_cast<std::size_t>(count));
  free_.reserve(pages_.capacity());
  slabs_.push_back(std::move(slab));
  for (std::int64_t i = 0; i < count; ++i) pages_.push_back({slabs_.back().data() + i * pitch, 0});
  for (std::int64_t i = count; i > 0; --i) free_.push_back(made + i - 1);  // the first one is taken first
}

std::int64_t PagePool::take() {
  if (free_.empty()) {
    require(static_cast<std::int64_t>(pages_.size()) < max_pages_, "page pool: all {} pages are in use",
            max_pages_);
    grow();
  }
  const std::int64_t page = free_.back();
  free_.pop_back();
  pages_[page].references = 1;
  ++in_use_;
  return page;
}

void PagePool::drop(std::int64_t page) {
  if (--pages_[page].references > 0) return;
  free_.push_back(page);
  --in_use_;
}

}  // namespace mla
