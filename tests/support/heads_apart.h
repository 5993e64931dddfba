#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "mla/cache/kv_view.h"
#include "support/edge.h"

namespace mla::test {

/// The rows of a view whose heads lie side by side, in pages of [head][row], which end where nothing may be
/// read.
class HeadsApart {
 public:
  HeadsApart(const KvView& together, std::int64_t heads, std::int64_t page_rows) : view_(together) {
    const std::int64_t bytes = together.head_bytes;
    view_.page_offset = 0;
    view_.page_rows = page_rows;
    view_.row_bytes = bytes;
    view_.head_bytes = page_rows * bytes;
    for (std::int64_t first = 0; first < view_.length; first += page_rows) {
      memory_.push_back(std::make_unique<Edge<std::byte>>(heads * view_.head_bytes));
      table_.push_back(memory_.back()->data());
      for (std::int64_t r = first; r < std::min(first + page_rows, view_.length); ++r) {
        for (std::int64_t h = 0; h < heads; ++h)
          std::memcpy(memory_.back()->data() + h * view_.head_bytes + (r - first) * bytes,
                      together.row(r) + h * bytes, static_cast<std::size_t>(bytes));
      }
    }
    view_.pages = table_.data();
  }
  const KvView& view() const { return view_; }

 private:
  std::vector<std::unique_ptr<Edge<std::byte>>> memory_;
  std::vector<const std::byte*> table_;
  KvView view_;
};

}  // namespace mla::test
