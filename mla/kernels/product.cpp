#include "mla/kernels/product.h"

namespace mla {

const ProductKernels& product_kernels(Isa isa) {
  switch (isa) {
    case Isa::avx512_bf16:
    case Isa::avx512:
      return avx512_products;
    case Isa::avx2:
      return avx2_products;
    case Isa::scalar:
      break;
  }
  return scalar_products;
}

}  // namespace mla
