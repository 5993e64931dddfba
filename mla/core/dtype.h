#pragma once
#include <bit>
#include <cstdint>
#include <string_view>

namespace mla {

/// Element types of weights and cache rows.
enum class DType : std::uint8_t { f32, bf16, f16, f8_e4m3, i8 };

/// Bytes of one element.
constexpr std::int64_t size_of(DType type) {
  switch (type) {
    case DType::f32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f8_e4m3:
    case DType::i8:
      return 1;
  }
  return 0;
}

/// "f32", "bf16", "f16", "fp8" or "int8": the names that the program's options use.
constexpr const char* name_of(DType type) {
  switch (type) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::f8_e4m3:
      return "fp8";
    case DType::i8:
      return "int8";
  }
  return "?";
}

/// The type of that name: "f32", "bf16", "fp8" or "int8", what products and caches may be made of. Throws
/// Error naming `field`.
DType dtype_named(std::string_view name, std::string_view field);

/// bfloat16: the upper half of a float.
struct bf16 {
  std::uint16_t bits;
};

constexpr float to_float(bf16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

/// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN.
constexpr bf16 to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

constexpr float to_float(float value) {
  return value;
}

/// IEEE half precision, subnormals, infinities and NaN included.
constexpr float f16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  std::uint32_t exponent = (half >> 10) & 0x1fu;
  std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

/// Rounds to nearest, ties to even; beyond 65504 to infinity; a NaN stays a (quiet) NaN.
constexpr std::uint16_t to_f16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (size >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520, halfway to 2^16
  if (size >= 0x38800000u) {                                                   // 2^-14
    const std::uint32_t rounded = (size + 0xfffu + (size >> 13 & 1u)) >> 13;
    return static_cast<std::uint16_t>(sign | (rounded - (112u << 10)));
  }
  // Subnormal: the sum's last bit is worth 2^-24.
  const auto steps =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5f) - std::bit_cast<std::uint32_t>(0.5f);
  return static_cast<std::uint16_t>(sign | steps);
}

/// OCP 8-bit float E4M3 in its "fn" form: bias 7, no infinities, 0x7f and 0xff are NaN, largest value 448.
constexpr float f8_e4m3_to_float(std::uint8_t code) {
  const std::uint32_t sign = static_cast<std::uint32_t>(code & 0x80u) << 24;
  const std::uint32_t exponent = (code >> 3) & 0xfu;
  const std::uint32_t mantissa = code & 7u;
  if ((code & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {  // mantissa * 2^-9
    const float value = static_cast<float>(mantissa) * 0x1p-9f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

/// Rounds to nearest, ties to even; beyond 448 saturates to 448, infinity too; a NaN stays a NaN.
constexpr std::uint8_t to_f8_e4m3(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return static_cast<std::uint8_t>(sign | 0x7fu);
  const float magnitude = std::bit_cast<float>(size);
  if (magnitude >= 448.0f) return static_cast<std::uint8_t>(sign | 0x7eu);
  if (magnitude >= 0x1p-6f) {
    const std::uint32_t rounded = (size + 0x7ffffu + (size >> 20 & 1u)) >> 20;
    return static_cast<std::uint8_t>(sign | (rounded - (120u << 3)));
  }
  // Subnormal: the sum's last bit is worth 2^-9.
  const auto steps =
      std::bit_cast<std::uint32_t>(magnitude + 0x1p14f) - std::bit_cast<std::uint32_t>(0x1p14f);
  return static_cast<std::uint8_t>(sign | steps);
}

}  // namespace mla
