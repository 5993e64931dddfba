#include "mla/core/buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace mla {
namespace {

constexpr std::size_t huge_page = huge_bytes;
constexpr std::align_val_t line{64};

std::size_t whole_pages(std::size_t bytes) {
  return (bytes + huge_page - 1) / huge_page * huge_page;
}

/// Pages that nobody has touched: memory that malloc hands out again may lie in small pages already.
std::byte* map_pages(std::size_t size) {
  void* mapped =
      ::mmap(nullptr, size + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  std::byte* const first = static_cast<std::byte*>(mapped);
  const std::size_t before = (huge_page - reinterpret_cast<std::uintptr_t>(first) % huge_page) % huge_page;
  if (before > 0) ::munmap(first, before);
  ::munmap(first + before + size, huge_page - before);
  ::madvise(first + before, size, MADV_HUGEPAGE);  // a wish: without it all works as well
  return first + before;
}

}  // namespace

void* allocate_bytes(std::size_t bytes) {
  if (bytes < huge_page) return std::memset(::operator new(bytes, line), 0, bytes);
  return std::memset(map_pages(whole_pages(bytes)), 0, bytes);
}

void release_bytes(void* memory, std::size_t bytes) {
  if (bytes < huge_page) return ::operator delete(memory, line);
  ::munmap(memory, whole_pages(bytes));
}

}  // namespace mla
