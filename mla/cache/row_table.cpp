#include "mla/cache/row_table.h"

#include <cstring>

namespace mla {
namespace {

/// Without branches, so that loops over it are vectorised; the values of f8_e4m3_to_float.
inline float f8_value(std::uint8_t code) {
  const std::uint32_t size = (code & 0x7fu) << 20, sign = (code & 0x80u) << 24;
  const float normal = std::bit_cast<float>(size + (120u << 23));
  const float subnormal = std::bit_cast<float>(size | (121u << 23)) - 0x1p-6f;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>((code & 0x78u) == 0 ? subnormal : normal);
  return std::bit_cast<float>(((code & 0x7fu) == 0x7fu ? 0x7fc00000u : bits) | sign);
}

void scale_codes(const std::byte* codes, float scale, std::int64_t count, float* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = f8_value(std::to_integer<std::uint8_t>(codes[i])) * scale;
}

void read_656(const std::byte* row, std::byte* values, const LeafKernels& leaf) {
  float wide[512], scales[4];
  std::memcpy(scales, row + 512, sizeof scales);
  for (int block = 0; block < 4; ++block)
    scale_codes(row + 128 * block, scales[block], 128, wide + 128 * block);
  leaf.f32_to_bf16(wide, reinterpret_cast<bf16*>(values), 512);
  std::memcpy(values + 1024, row + 528, 128);
}

void read_584(const std::byte* row, const std::byte* scales, std::byte* values, const LeafKernels& leaf) {
  float wide[448];
  for (int block = 0; block < 7; ++block) {
    const auto exponent =
        std::to_integer<std::uint32_t>(scales[block]);  // OCP E8M0: 2^(exponent - 127), 255 NaN
    const std::uint32_t bits = exponent == 255 ? 0x7fc00000u : exponent == 0 ? 0x00400000u : exponent << 23;
    scale_codes(row + 64 * block, std::bit_cast<float>(bits), 64, wide + 64 * block);
  }
  leaf.f32_to_bf16(wide, reinterpret_cast<bf16*>(values), 448);
  std::memcpy(values + 896, row + 448, 128);
}

}  // namespace

DType RowTable::value_type() const {
  return format == RowFormat::f32 || format == RowFormat::f16 ? DType::f32 : DType::bf16;
}

void RowTable::read(std::int64_t row, std::byte* values, const LeafKernels& leaf) const {
  const std::byte* page = data + row / page_rows * page_bytes;
  const std::int64_t slot = row % page_rows;
  const std::byte* from = page + slot * row_bytes;
  switch (format) {
    case RowFormat::f32:
    case RowFormat::bf16:
      std::memcpy(values, from, static_cast<std::size_t>(width * size_of(value_type())));
      return;
    case RowFormat::f16:
      for (std::int64_t i = 0; i < width; ++i) {
        std::uint16_t half;
        std::memcpy(&half, from + 2 * i, sizeof half);
        const float value = f16_to_float(half);
        std::memcpy(values + 4 * i, &value, sizeof value);
      }
      return;
    case RowFormat::fp8_656:
      return read_656(from, values, leaf);
    case RowFormat::fp8_584:
      return read_584(page + slot * 576, page + page_rows * 576 + slot * 8, values, leaf);
  }
}

}  // namespace mla
