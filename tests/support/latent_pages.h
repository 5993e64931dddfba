#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "mla/cache/kv_view.h"

namespace mla::test {

/// Rows written page by page, `gap` bytes between them, 0xff wherever no row is.
class LatentPages {
 public:
  LatentPages(const RowLayout& layout, const std::vector<float>& values, std::int64_t length,
              std::int64_t page_rows, std::int64_t gap = 0) {
    const std::int64_t stride = layout.bytes() + gap;
    const std::int64_t count = (length + page_rows - 1) / page_rows;
    memory_.resize(static_cast<std::size_t>(count));
    for (std::int64_t i = count; i-- > 0;) {
      memory_[i].assign(static_cast<std::size_t>(page_rows * stride - gap + 4), std::byte{0xff});
    }
    for (auto& page : memory_) table_.push_back(page.data() + 4);
    view_ = {layout.type(), table_.data(), 0, page_rows, stride, length, 0, 0, layout.head_bytes()};
    for (std::int64_t r = 0; r < length; ++r)
      layout.write(values.data() + r * layout.values(), const_cast<std::byte*>(view_.row(r)));
  }
  LatentPages(const LatentPages&) = delete;
  const KvView& view() const { return view_; }

 private:
  std::vector<std::vector<std::byte>> memory_;
  std::vector<const std::byte*> table_;
  KvView view_;
};

}  // namespace mla::test
