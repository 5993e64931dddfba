#include "mla/core/parallel.h"

#include <algorithm>

#include "mla/core/error.h"

namespace mla {
namespace {

constexpr int most_threads = 1024;
thread_local int asked_for = 0;

}  // namespace

int threads() {
  return asked_for > 0 ? asked_for : std::min(omp_get_max_threads(), most_threads);
}

void set_threads(int count) {
  require(count >= 1 && count <= most_threads, "threads: found {}, expected 1 to {}", count, most_threads);
  asked_for = count;
}

}  // namespace mla
