#include "mla/cache/page_pool.h"

#include "mla/core/error.h"

namespace mla {

PagePool::PagePool(RowLayout layout, std::int64_t num_layers, std::int64_t page_rows, std::int64_t max_pages)
    : layout_(layout), num_layers_(num_layers), page_rows_(page_rows), max_pages_(max_pages) {
  require(num_layers >= 1 && page_rows >= 1 && max_pages >= 0,
          "page pool: found {} layers, {} rows a page, {} pages, expected at least 1, 1 and 0", num_layers,
          page_rows, max_pages);
}

std::int64_t PagePool::take() {
  if (free_.empty()) {
    require(static_cast<std::int64_t>(pages_.size()) < max_pages_, "page pool: all {} pages are in use",
            max_pages_);
    pages_.push_back({Buffer<std::byte>(page_bytes()), 0});
    free_.push_back(static_cast<std::int64_t>(pages_.size()) - 1);
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
