#include "mla/kernels/gradient.h"

namespace mla {

const GradientKernels& gradient_kernels(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
    case Isa::avx512:
      return avx512_gradients;
    case Isa::avx2:
      return avx2_gradients;
    case Isa::scalar:
      break;
  }
  return scalar_gradients;
}

}  // namespace mla
