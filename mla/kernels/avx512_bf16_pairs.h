#pragma once
// What the files for products of bf16 pairs share.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "mla/core/parts.h"
#include "mla/kernels/attend.h"
#include "mla/kernels/avx512_pairs.h"

namespace mla {
namespace {

/// Asks for a line to come into L2. (An instruction of its own: gcc 12 drops loops that only prefetch.)
inline void fetch_line(const std::byte* line) {
  asm volatile("prefetcht1 %0" : : "m"(*reinterpret_cast<const char*>(line)));
}

/// Lines to be fetched while a block computes, `rate` with each of its steps: in the order of their
/// addresses, since memory and page tables answer neighbours sooner. The list ends with lines without end.
struct Fetch {
  const Lines* list;
  Lines now{nullptr, 0};
  int rate = 0;

  /// Asks for the lines of one step.
  __attribute__((always_inline)) void step() {
    for (int i = rate; i > 0; --i) {
      fetch_line(now.first);
      now.first += 64;
      if (--now.count == 0) now = *list++;
    }
  }

  /// Takes `steps` steps and asks for lines with each. Loops of their own for the usual rates: what step()
  /// decides each time costs a block of few products 2 to 3 %.
  template <class Step>
  __attribute__((always_inline)) void along(std::int64_t steps, const Step& take_step) {
    if (rate == 0) {
      for (; steps > 0; --steps) take_step();
    } else if (rate == 1) {
      along_lines<1>(steps, take_step);
    } else if (rate == 2) {
      along_lines<2>(steps, take_step);
    } else {
      for (; steps > 0; --steps) {
        take_step();
        step();
      }
    }
  }

 private:
  /// The same at a known rate. May ask for a line behind the last of neighbours, which harms nobody.
  template <int lines, class Step>
  __attribute__((always_inline)) void along_lines(std::int64_t steps, const Step& take_step) {
    while (steps > 0) {
      const std::int64_t whole = parts(now.count, lines), some = steps < whole ? steps : whole;
      const std::byte* line = now.first;
      for (const std::byte* end = line + some * lines * 64; line != end; line += lines * 64) {
        take_step();
#pragma GCC unroll 2
        for (int i = 0; i < lines; ++i) fetch_line(line + i * 64);
      }
      steps -= some;
      now = some == whole ? *list++ : Lines{line, now.count - some * lines};
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
