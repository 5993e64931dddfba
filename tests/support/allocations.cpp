#include "support/allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define MLA_NO_ALLOCATION_COUNTS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MLA_NO_ALLOCATION_COUNTS 1
#endif
#endif

#ifdef MLA_NO_ALLOCATION_COUNTS

std::int64_t mla::test::allocations() {
  return -1;
}

#else

namespace {
std::atomic<std::int64_t> count;
}

std::int64_t mla::test::allocations() {
  return count;
}

void* operator new(std::size_t size) {
  ++count;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}

void* operator new(std::size_t size, std::align_val_t alignment) {
  ++count;
  const auto multiple = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(multiple, (size + multiple - 1) / multiple * multiple)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
#endif
