#include "mla/kernels/panel.h"

namespace mla {

const PanelKernels& panel_kernels(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
    case Isa::avx512:
      return avx512_panels;
    case Isa::avx2:
      return avx2_panels;
    case Isa::scalar:
      break;
  }
  return scalar_panels;
}

}  // namespace mla
