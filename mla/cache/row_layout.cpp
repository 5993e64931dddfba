#include "mla/cache/row_layout.h"

#include <cstring>

#include "mla/core/error.h"
#include "mla/kernels/leaf.h"

namespace mla {

RowLayout RowLayout::latent(std::int64_t d_c, std::int64_t d_r, DType type) {
  require(d_c >= 1 && d_r >= 0, "cache row: found d_c {}, d_r {}, expected at least 1 and 0", d_c, d_r);
  if (type == DType::f8_e4m3 || type == DType::i8) return {type, latent_row(type, d_c, d_r)};
  return {type, d_c + d_r, 0, (d_c + d_r) * size_of(type)};
}

RowLayout RowLayout::heads(std::int64_t h_kv, std::int64_t d_qk, std::int64_t d_v, DType type) {
  require(h_kv >= 1 && d_qk >= 1 && d_v >= 1,
          "cache row: found h_kv {}, d_qk {}, d_v {}, expected at least 1 each", h_kv, d_qk, d_v);
  return {type, h_kv * (d_qk + d_v), d_qk * size_of(type), (d_qk + d_v) * size_of(type)};
}

RowLayout::RowLayout(DType type, std::int64_t values, std::int64_t value_offset, std::int64_t head_bytes)
    : type_(type),
      values_(values),
      bytes_(values * size_of(type)),
      value_offset_(value_offset),
      head_bytes_(head_bytes) {
  require(type == DType::f32 || type == DType::bf16,
          "cache rows of {}: expected f32 or bf16, or for the latents of MLA fp8 or int8", name_of(type));
}

RowLayout::RowLayout(DType type, const LatentRow& quantised)
    : type_(type),
      values_(quantised.d_c + quantised.d_r),
      bytes_(quantised.bytes),
      value_offset_(0),
      head_bytes_(quantised.bytes),
      quantised_(quantised) {}

void RowLayout::write(const float* values, std::byte* row) const {
  switch (type_) {
    case DType::bf16:
      return leaf_kernels().f32_to_bf16(values, reinterpret_cast<bf16*>(row), values_);
    case DType::f8_e4m3:
    case DType::i8:
      return encode_latent(type_, quantised_, values, row);
    default:
      std::memcpy(row, values, static_cast<std::size_t>(bytes()));
  }
}

void RowLayout::read(const std::byte* row, std::int64_t count, float* values) const {
  switch (type_) {
    case DType::bf16:
      return leaf_kernels().bf16_to_f32(reinterpret_cast<const bf16*>(row), values, count);
    case DType::f8_e4m3:
    case DType::i8:
      return decode_latent(type_, quantised_, row, count, values, leaf_kernels());
    default:
      std::memcpy(values, row, static_cast<std::size_t>(count) * sizeof(float));
  }
}

}  // namespace mla
