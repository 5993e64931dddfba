#include "mla/cache/row_layout.h"

#include <cstring>

#include "mla/core/error.h"
#include "mla/kernels/leaf.h"

namespace mla {

RowLayout RowLayout::latent(std::int64_t d_c, std::int64_t d_r, DType type) {
  require(d_c >= 1 && d_r >= 0, "cache row: found d_c {}, d_r {}, expected at least 1 and 0", d_c, d_r);
  return {type, d_c + d_r, 0, (d_c + d_r) * size_of(type)};
}

RowLayout RowLayout::heads(std::int64_t h_kv, std::int64_t d_qk, std::int64_t d_v, DType type) {
  require(h_kv >= 1 && d_qk >= 1 && d_v >= 1,
          "cache row: found h_kv {}, d_qk {}, d_v {}, expected at least 1 each", h_kv, d_qk, d_v);
  return {type, h_kv * (d_qk + d_v), d_qk * size_of(type), (d_qk + d_v) * size_of(type)};
}

RowLayout::RowLayout(DType type, std::int64_t values, std::int64_t value_offset, std::int64_t head_bytes)
    : type_(type), values_(values), value_offset_(value_offset), head_bytes_(head_bytes) {
  require(type == DType::f32 || type == DType::bf16,
          "cache rows of {}: not supported yet, expected f32 or bf16", name_of(type));
}

void RowLayout::write(const float* values, std::byte* row) const {
  if (type_ == DType::bf16) return leaf_kernels().f32_to_bf16(values, reinterpret_cast<bf16*>(row), values_);
  std::memcpy(row, values, static_cast<std::size_t>(bytes()));
}

void RowLayout::read(const std::byte* row, std::int64_t count, float* values) const {
  if (type_ == DType::bf16)
    return leaf_kernels().bf16_to_f32(reinterpret_cast<const bf16*>(row), values, count);
  std::memcpy(values, row, static_cast<std::size_t>(count) * sizeof(float));
}

}  // namespace mla
