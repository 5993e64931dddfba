#pragma once
#include <cstdint>

namespace mla {

/// Parts of `size` that n takes: n / size, rounded up. REQUIRES n >= 0, size > 0.
constexpr std::int64_t parts(std::int64_t n, std::int64_t size) {
  return (n + size - 1) / size;
}

/// n or the next multiple of `multiple`.
constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return parts(n, multiple) * multiple;
}

}  // namespace mla
