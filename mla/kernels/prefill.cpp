#include "mla/kernels/prefill.h"

#include "mla/core/cpu.h"

namespace mla {

bool has_prefill() {
  return selected_isa() == Isa::avx512_bf16;
}

}  // namespace mla
