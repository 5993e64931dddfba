#include "mla/cache/row_table.h"

#include <cstring>

namespace mla {
namespace {

void read_656(const std::byte* row, std::byte* values, const LeafKernels& leaf) {
  const auto* codes = reinterpret_cast<const std::uint8_t*>(row);
  float wide[512], scales[4];
  std::memcpy(scales, row + 512, sizeof scales);
  for (int block = 0; block < 4; ++block)
    leaf.f8_to_f32(codes + 128 * block, scales[block], wide + 128 * block, 128);
  leaf.f32_to_bf16(wide, reinterpret_cast<bf16*>(values), 512);
  std::memcpy(values + 1024, row + 528, 128);
}

void read_584(const std::byte* row, const std::byte* scales, std::byte* values, const LeafKernels& leaf) {
  const auto* codes = reinterpret_cast<const std::uint8_t*>(row);
  float wide[448];
  for (int block = 0; block < 7; ++block) {
    const auto exponent =
        std::to_integer<std::uint32_t>(scales[block]);  // OCP E8M0: 2^(exponent - 127), 255 NaN
    const std::uint32_t bits = exponent == 255 ? 0x7fc00000u : exponent == 0 ? 0x00400000u : exponent << 23;
    leaf.f8_to_f32(codes + 64 * block, std::bit_cast<float>(bits), wide + 64 * block, 64);
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
      leaf.f16_to_f32(reinterpret_cast<const std::uint16_t*>(from), reinterpret_cast<float*>(values), width);
      return;
    case RowFormat::fp8_656:
      return read_656(from, values, leaf);
    case RowFormat::fp8_584:
      return read_584(page + slot * 576, page + page_rows * 576 + slot * 8, values, leaf);
  }
}

}  // namespace mla
