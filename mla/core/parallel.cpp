#include "mla/core/parallel.h"

#include "mla/core/error.h"

namespace mla {
namespace {

thread_local int asked_for = 0;

}  // namespace

int threads() {
  return asked_for > 0 ? asked_for : omp_get_num_procs();
}

void set_threads(int count) {
  require(count >= 1 && count <= 1024, "threads: found {}, expected 1 to 1024", count);
  asked_for = count;
}

}  // namespace mla
