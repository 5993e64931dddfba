#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "mla/cache/kv_view.h"
#include "mla/cache/page_pool.h"

namespace mla {

/// The cached rows of one conversation, through a block table into a pool. (Chapter 3.4: the latent cache.)
///
/// Appending is two steps, since every layer writes its own row: extend(n) makes room for n tokens in all
/// layers, then each layer writes rows [length - n, length) with write().
class KvCache {
 public:
  explicit KvCache(std::shared_ptr<PagePool> pool);
  KvCache(KvCache&&) noexcept = default;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  std::int64_t length() const { return length_; }
  const PagePool& pool() const { return *pool_; }
  std::int64_t pages() const { return static_cast<std::int64_t>(table_.size()); }

  /// Makes room for `count` more tokens. A last page that is shared and not full is copied first, so that
  /// what is written never shows in another conversation. On Error (no free page) nothing has changed.
  void extend(std::int64_t count);

  /// Encodes values [layout.values()] as the row of `position` in `layer`.
  /// REQUIRES 0 <= position < length, and the position to be newer than the last fork.
  void write(std::int64_t layer, std::int64_t position, const float* values);

  /// The rows of `layer`, to be read until the next extend, truncate or move of this cache.
  KvView view(std::int64_t layer) const;

  /// Forgets all tokens from `length` on and gives their pages back. Throws Error if it is beyond the present
  /// length.
  void truncate(std::int64_t length);

  /// Another conversation with the same past. Pages are shared until one of the two writes.
  KvCache fork() const;

 private:
  void drop_pages_from(std::size_t first);
  void push_page(std::int64_t page);

  std::shared_ptr<PagePool> pool_;
  std::vector<std::int64_t> table_;      // page numbers
  std::vector<const std::byte*> bytes_;  // their first bytes
  std::int64_t length_ = 0;
};

}  // namespace mla
