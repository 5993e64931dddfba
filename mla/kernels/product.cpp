#include "mla/kernels/product.h"

#include <algorithm>

#include "mla/core/buffer.h"
#include "mla/kernels/leaf.h"

namespace mla {
namespace {

std::int64_t steps(std::int64_t depth) {
  return (depth + product_step - 1) / product_step;
}

}  // namespace

std::int64_t packed_size(std::int64_t num_tokens, std::int64_t depth) {
  const std::int64_t tokens = num_tokens == 1 ? 1 : (num_tokens + 3) / 4 * 4;
  return tokens * steps(depth) * product_step;
}

void pack_dot_tokens(const float* x, std::int64_t x_stride, std::int64_t num_tokens, std::int64_t depth,
                     bf16* packed) {
  if (num_tokens == 1) {
    leaf_kernels().f32_to_bf16(x, packed, depth);
    std::fill(packed + depth, packed + packed_size(1, depth), bf16{0});
    return;
  }
  thread_local Buffer<bf16> row;
  row.resize(steps(depth) * product_step);
  const std::int64_t tokens = (num_tokens + 3) / 4 * 4;
  std::fill(row.data() + depth, row.data() + row.size(), bf16{0});
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (t < num_tokens) {
      leaf_kernels().f32_to_bf16(x + t * x_stride, row.data(), depth);
    } else {
      std::fill_n(row.data(), depth, bf16{0});
    }
    for (std::int64_t s = 0; s < steps(depth); ++s) {
      std::copy_n(row.data() + s * product_step, product_step, packed + (s * tokens + t) * product_step);
    }
  }
}

}  // namespace mla
