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
  ~Buffer() { release(data_); }

  /// Makes room for `size` elements. Growing loses the contents (the new memory is zero); shrinking keeps the
  /// memory, so that a buffer used for one chunk after another is allocated once.
  T* resize(std::int64_t size) {
    if (size > capacity_) *this = Buffer(size);
    size_ = size;
    return data_;
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
  static constexpr std::align_val_t alignment{64};

  static T* allocate(std::int64_t size) {
    if (size < 0 || size > (std::int64_t{1} << 46) / static_cast<std::int64_t>(sizeof(T))) {
      fail("buffer of {} elements: size out of range", size);
    }
    if (size == 0) return nullptr;
    const auto bytes = static_cast<std::size_t>(size) * sizeof(T);
    void* memory = ::operator new(bytes, alignment);
    std::memset(memory, 0, bytes);
    return static_cast<T*>(memory);
  }
  static void release(T* data) {
    if (data) ::operator delete(data, alignment);
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
