#include "mla/kernels/latent_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace mla {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float largest_f8 = 448.0f;
constexpr int least_power = -58, most_power = 59;  // of four: all products with codes are normal bf16 values
constexpr float largest_i8 = 127.0f;
/// int8: k_rope / scale stays below 2^40 and the scale above 2^-100, so that no product of queries and rows
/// leaves the range of f32.
constexpr float rope_share = 0x1p-40f, least_scale = 0x1p-100f;
constexpr float most_scale = 0x1.0204p121f;  // 127 times it is still a number

constexpr std::int64_t whole_words(std::int64_t bytes) {
  return (bytes + 3) / 4 * 4;
}

float load_float(const std::byte* from) {
  float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// The largest magnitude, or NaN if any value is NaN or infinite.
float largest_magnitude(const float* values, std::int64_t count) {
  float top = 0;
  bool are_numbers = true;
  for (std::int64_t i = 0; i < count; ++i) {
    const float size = std::abs(values[i]);
    are_numbers = are_numbers && size <= std::numeric_limits<float>::max();
    top = size > top ? size : top;
  }
  return are_numbers ? top : nan;
}

/// The least power of four (of those allowed) times which 448 is no less than `top`.
float fp8_scale(float top) {
  if (top == 0) return 1.0f;
  int power_of_two = 0;
  const double part = std::frexp(static_cast<double>(top) / largest_f8, &power_of_two);
  if (part == 0.5) --power_of_two;
  const int power_of_four = (power_of_two + 512 + 1) / 2 - 256;  // rounded up
  return std::ldexp(1.0f, 2 * std::clamp(power_of_four, least_power, most_power));
}

void encode_fp8(const LatentRow& at, const float* values, std::byte* row) {
  for (std::int64_t first = 0; first < at.d_c; first += fp8_block) {
    const std::int64_t end = std::min(first + fp8_block, at.d_c);
    const float top = largest_magnitude(values + first, end - first);
    const float scale = std::isnan(top) ? nan : fp8_scale(top);
    const float inverse = 1.0f / scale;
    for (std::int64_t i = first; i < end; ++i)
      row[i] = static_cast<std::byte>(to_f8_e4m3(values[i] * inverse));
    std::memcpy(row + at.scales + first / fp8_block * sizeof scale, &scale, sizeof scale);
  }
}

void decode_fp8(const LatentRow& at, const std::byte* row, std::int64_t count, float* values,
                const LeafKernels& leaf) {
  const auto* const codes = reinterpret_cast<const std::uint8_t*>(row);
  for (std::int64_t i = 0; i < count; i += fp8_block) {
    const float scale = load_float(row + at.scales + i / fp8_block * sizeof scale);
    leaf.f8_to_f32(codes + i, scale, values + i, std::min(fp8_block, count - i));
  }
}

void encode_int8(const LatentRow& at, const float* values, std::byte* row) {
  const float top = largest_magnitude(values, at.d_c);
  float rope_top = 0;  // of the numbers: what is none stays what it is in bf16
  for (std::int64_t i = 0; i < at.d_r; ++i) {
    const float size = std::abs(values[at.d_c + i]);
    if (size <= std::numeric_limits<float>::max()) rope_top = std::max(rope_top, size);
  }
  Int8Scale scale{{0, 0}, nan, nan};
  if (!std::isnan(top)) {
    scale.scale = std::min(std::max({top / largest_i8, rope_top * rope_share, least_scale}), most_scale);
    scale.log2_scale = std::log2(scale.scale);
  }
  for (std::int64_t i = 0; i < at.d_c; ++i) {
    const long code = std::isnan(top) ? 0 : std::lrint(values[i] / scale.scale);
    row[i] = static_cast<std::byte>(code);
    scale.start[i / 4 % 2] -= static_cast<std::int32_t>(128 * code);
  }
  std::memcpy(row + at.scales, &scale, sizeof scale);
  for (std::int64_t i = 0; i < at.d_r; ++i) {
    const bf16 part = to_bf16(values[at.d_c + i] / scale.scale);
    std::memcpy(row + at.rope + i * sizeof part, &part, sizeof part);
  }
}

float int8_scale(const LatentRow& at, const std::byte* row) {
  return load_float(row + at.scales + offsetof(Int8Scale, scale));
}

}  // namespace

LatentRow latent_row(DType type, std::int64_t d_c, std::int64_t d_r) {
  const std::int64_t scales = whole_words(d_c);
  const std::int64_t scale_bytes = type == DType::i8
                                       ? static_cast<std::int64_t>(sizeof(Int8Scale))
                                       : (d_c + fp8_block - 1) / fp8_block * size_of(DType::f32);
  const std::int64_t rope = scales + scale_bytes;
  return {d_c, d_r, scales, rope, whole_words(rope + d_r * size_of(DType::bf16))};
}

void encode_latent(DType type, const LatentRow& at, const float* values, std::byte* row) {
  std::memset(row + at.d_c, 0, static_cast<std::size_t>(at.bytes - at.d_c));  // the gaps
  if (type == DType::i8) return encode_int8(at, values, row);
  encode_fp8(at, values, row);
  for (std::int64_t i = 0; i < at.d_r; ++i) {
    const bf16 part = to_bf16(values[at.d_c + i]);
    std::memcpy(row + at.rope + i * sizeof part, &part, sizeof part);
  }
}

void decode_latent(DType type, const LatentRow& at, const std::byte* row, std::int64_t count, float* values,
                   const LeafKernels& leaf) {
  const std::int64_t codes = std::min(count, at.d_c), rope = count - codes;
  if (type == DType::i8)
    leaf.i8_to_f32(reinterpret_cast<const std::int8_t*>(row), int8_scale(at, row), values, codes);
  else
    decode_fp8(at, row, codes, values, leaf);
  leaf.bf16_to_f32(reinterpret_cast<const bf16*>(row + at.rope), values + codes, rope);
  for (std::int64_t i = codes; type == DType::i8 && i < count; ++i) values[i] *= int8_scale(at, row);
}

}  // namespace mla
