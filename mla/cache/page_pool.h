#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "mla/cache/row_layout.h"
#include "mla/core/buffer.h"

namespace mla {

/// Fixed-size pages that conversations keep their rows in. A page holds `page_rows` tokens of all layers:
/// [layer][slot][row_stride()]. Pages are counted references: conversations that share a prefix share its
/// pages. Not thread-safe: one thread takes and drops pages, any number may read rows meanwhile.
/// (Chapter 3.4.2.)
class PagePool {
 public:
  /// At most `max_pages` pages at a time; memory is taken as they are first needed and kept for reuse.
  PagePool(RowLayout layout, std::int64_t num_layers, std::int64_t page_rows, std::int64_t max_pages);

  const RowLayout& layout() const { return layout_; }
  std::int64_t num_layers() const { return num_layers_; }
  std::int64_t page_rows() const { return page_rows_; }
  std::int64_t page_bytes() const { return num_layers_ * layer_bytes(); }
  std::int64_t row_stride() const { return row_stride_; }  ///< bytes from one slot to the next
  std::int64_t layer_bytes() const { return page_rows_ * row_stride_; }
  std::int64_t pages_in_use() const { return in_use_; }
  /// Bytes that the pages in use hold.
  std::int64_t bytes_in_use() const { return in_use_ * page_bytes(); }

  /// A free page, with one reference. Its contents are unspecified. Throws Error when max_pages are in use.
  std::int64_t take();
  void share(std::int64_t page) { ++pages_[page].references; }
  void drop(std::int64_t page);
  bool is_shared(std::int64_t page) const { return pages_[page].references > 1; }
  std::byte* data(std::int64_t page) { return pages_[page].data; }

 private:
  struct Page {
    std::byte* data;
    std::int64_t references = 0;
  };
  void grow();

  RowLayout layout_;
  std::int64_t row_stride_;
  std::int64_t num_layers_;
  std::int64_t page_rows_;
  std::int64_t max_pages_;
  std::int64_t in_use_ = 0;
  std::vector<Buffer<std::byte>> slabs_;  // that pages are cut from
  std::vector<Page> pages_;
  std::vector<std::int64_t> free_;
};

}  // namespace mla
