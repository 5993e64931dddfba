#pragma once
#include <cstdint>

namespace mla::test {

/// How often this process has taken memory with `new` so far; -1 where that is not counted (sanitizers).
std::int64_t allocations();

}  // namespace mla::test
