#include "mla/cache/kv_cache.h"

#include <cstring>
#include <utility>

#include "mla/core/error.h"
#include "mla/core/parts.h"

namespace mla {
namespace {

constexpr std::int64_t max_length = std::int64_t{1} << 40;

}  // namespace

KvCache::KvCache(std::shared_ptr<PagePool> pool) : pool_(std::move(pool)) {}

KvCache& KvCache::operator=(KvCache&& other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(table_, other.table_);
  std::swap(bytes_, other.bytes_);
  std::swap(length_, other.length_);
  return *this;
}

KvCache::~KvCache() {
  drop_pages_from(0);
}

void KvCache::drop_pages_from(std::size_t first) {
  for (std::size_t i = first; i < table_.size(); ++i) pool_->drop(table_[i]);
  table_.resize(first);
  bytes_.resize(first);
}

void KvCache::push_page(std::int64_t page) {
  table_.push_back(page);
  bytes_.push_back(pool_->data(page));
}

void KvCache::extend(std::int64_t count) {
  require(count >= 0 && count <= max_length - length_, "cache: can't extend {} tokens by {}", length_, count);
  const std::int64_t rows = pool_->page_rows();
  const std::int64_t needed = parts(length_ + count, rows);
  const bool copy_last = count > 0 && length_ % rows != 0 && pool_->is_shared(table_.back());

  // All that can fail comes first.
  const std::int64_t kept = pages() - (copy_last ? 1 : 0);
  std::vector<std::int64_t> fresh;
  try {
    if (needed > kept) {
      table_.reserve(static_cast<std::size_t>(needed));
      bytes_.reserve(static_cast<std::size_t>(needed));
      fresh.reserve(static_cast<std::size_t>(needed - kept));
    }
    for (std::int64_t i = kept; i < needed; ++i) fresh.push_back(pool_->take());
  } catch (...) {
    for (const std::int64_t page : fresh) pool_->drop(page);
    throw;
  }
  if (copy_last) {
    std::memcpy(pool_->data(fresh.front()), bytes_.back(), static_cast<std::size_t>(pool_->page_bytes()));
    drop_pages_from(table_.size() - 1);
  }
  for (const std::int64_t page : fresh) push_page(page);
  length_ += count;
}

void KvCache::write(std::int64_t layer, std::int64_t position, const float* values) {
  const std::int64_t rows = pool_->page_rows();
  std::byte* page = pool_->data(table_[position / rows]);
  pool_->layout().write(values, page + layer * pool_->layer_bytes() + position % rows * pool_->row_stride());
}

KvView KvCache::view(std::int64_t layer) const {
  const RowLayout& layout = pool_->layout();
  return {layout.type(),       bytes_.data(),         layer * pool_->layer_bytes(),
          pool_->page_rows(),  pool_->row_stride(),   length_,
          layout.key_offset(), layout.value_offset(), layout.head_bytes()};
}

void KvCache::truncate(std::int64_t length) {
  require(length >= 0 && length <= length_, "cache: can't truncate {} tokens to {}", length_, length);
  const std::int64_t rows = pool_->page_rows();
  drop_pages_from(static_cast<std::size_t>(parts(length, rows)));
  length_ = length;
}

KvCache KvCache::fork() const {
  KvCache copy(pool_);
  for (const std::int64_t page : table_) {
    pool_->share(page);
    copy.push_page(page);
  }
  copy.length_ = length_;
  return copy;
}

}  // namespace mla
