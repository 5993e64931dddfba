#pragma once
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace mla::test {

/// `n` elements whose last one ends where memory ends.
template <class T>
class Edge {
 public:
  explicit Edge(std::int64_t n) : n_(n) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t used = (canary + static_cast<std::size_t>(n) * sizeof(T) + page - 1) / page * page;
    size_ = used + page;
    memory_ = static_cast<std::byte*>(
        ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || ::mprotect(memory_ + used, page, PROT_NONE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(memory_ + used) - n;
    std::memset(reinterpret_cast<std::byte*>(data_) - canary, 0xa5, canary);
  }
  explicit Edge(const std::vector<T>& values) : Edge(static_cast<std::int64_t>(values.size())) {
    std::copy(values.begin(), values.end(), data_);
  }
  Edge(const Edge&) = delete;
  ~Edge() {
    const auto* before = reinterpret_cast<const std::uint8_t*>(data_) - canary;
    for (std::size_t i = 0; i < canary; ++i) EXPECT_EQ(before[i], 0xa5) << "written before the array";
    ::munmap(memory_, size_);
  }
  T* data() { return data_; }
  T& operator[](std::int64_t i) { return data_[i]; }
  std::int64_t size() const { return n_; }

 private:
  static constexpr std::size_t canary = 64;
  std::int64_t n_;
  std::size_t size_;
  std::byte* memory_;
  T* data_;
};

}  // namespace mla::test
