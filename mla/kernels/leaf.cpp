#include "mla/kernels/leaf.h"

namespace mla {

const LeafKernels& leaf_kernels(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
      return avx512_bf16_kernels;
    case Isa::avx512:
      return avx512_kernels;
    case Isa::avx2:
      return avx2_kernels;
    case Isa::scalar:
      break;
  }
  return scalar_kernels;
}

const LeafKernels& leaf_kernels() {
  static const LeafKernels& chosen = leaf_kernels(selected_isa());
  return chosen;
}

}  // namespace mla
