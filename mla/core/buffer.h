#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "mla/core/error.h"

namespace mla {

/// Of a huge page: memory of that size and more asks for them.
constexpr std::int64_t huge_bytes = std::int64_t{2} << 20;

/// Whether the address sanitizer is on.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool is_sanitized = true;
#elif defined(__has_feature)
constexpr bool is_sanitized = __has_feature(address_sanitizer);
#else
constexpr bool is_sanitized = false;
#endif

/// Zeroed bytes, aligned to 64, or from 2 MiB on to that and on huge pages where the system has them:
/// attention walks rows in the order of a block table, and small pages would cost it a walk of the page table
/// each few rows. Throws std::bad_alloc.
void* allocate_bytes(std::size_t bytes);
void release_bytes(void* memory, std::size_t bytes);

/// A 64-byte aligned array of trivial elements that owns its memory. New elements are zero.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size) : data_(allocate(size)), size_(size), capacity_(size) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~Buffer() {
    if (data_) release_bytes(data_, static_cast<std::size_t>(capacity_) * sizeof(T));
  }

  /// Makes room for `size` elements. Growing loses the contents (the new memory is zero); shrinking keeps the
  /// memory, so that a buffer used for one chunk after another is allocated once.
  T* resize(std::int64_t size) {
    if (size > capacity_) *this = Buffer(size);
    size_ = size;
    return data_;
  }
  /// The same for memory that a thread keeps and walks time and again: in huge pages, however little it is.
  /// Small pages may fall so that caches hold them badly, by chance, for as long as a process runs: attention
  /// over fp8 rows took 0.17 ms in some processes and 0.24 ms in others. (Sanitizers want to know its end.)
  T* resize_scratch(std::int64_t size) {
    constexpr std::int64_t least = is_sanitized ? 0 : huge_bytes / static_cast<std::int64_t>(sizeof(T));
    return resize(std::max(size, least));
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  std::int64_t capacity() const { return capacity_; }
  T& operator[](std::int64_t i) { return data_[i]; }
  const T& operator[](std::int64_t i) const { return data_[i]; }
  std::span<T> span() { return {data_, static_cast<std::size_t>(size_)}; }
  std::span<const T> span() const { return {data_, static_cast<std::size_t>(size_)}; }

 private:
  static T* allocate(std::int64_t size) {
    if (size < 0 || size > (std::int64_t{1} << 46) / static_cast<std::int64_t>(sizeof(T))) {
      fail("buffer of {} elements: size out of range", size);
    }
    if (size == 0) return nullptr;
    return static_cast<T*>(allocate_bytes(static_cast<std::size_t>(size) * sizeof(T)));
  }
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  T* data_ = nullptr;
  std::int64_t size_ = 0;
  std::int64_t capacity_ = 0;
};

}  // namespace mla
