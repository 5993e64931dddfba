#pragma once
// What the files for products of bf16 pairs share.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "mla/kernels/attend.h"

namespace mla {
namespace {

inline __m512bh as_pairs(__m512i x) {
  return reinterpret_cast<__m512bh>(x);
}

/// Lines to be fetched while a block computes, `rate` with each of its steps: in the order of their
/// addresses, since memory and page tables answer neighbours sooner. The list ends with lines without end.
struct Fetch {
  const Lines* list;
  Lines now{nullptr, 0};
  int rate = 0;

  /// Asks for some lines to come into L2. (An instruction of its own: gcc 12 drops loops that only prefetch.)
  __attribute__((always_inline)) void step() {
    for (int i = rate; i > 0; --i) {
      asm volatile("prefetcht1 %0" : : "m"(*reinterpret_cast<const char*>(now.first)));
      now.first += 64;
      if (--now.count == 0) now = *list++;
    }
  }
};

/// A number as a type.
template <int N>
struct Count {
  static constexpr int value = N;
};

}  // namespace
}  // namespace mla
