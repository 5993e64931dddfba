#include "support/oracle.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace mla::test {

std::vector<float> Random::values(std::int64_t n, double scale) {
  std::vector<float> result(static_cast<std::size_t>(n));
  for (float& value : result) value = static_cast<float>(scale * (unit() + unit() + unit()));
  return result;
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16}) {
    if (supports(isa)) isas.push_back(isa);
  }
  return isas;
}

std::uint16_t nearest_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  if (std::isnan(x)) return static_cast<std::uint16_t>(sign | 0x7fc0u);  // any NaN will do: callers ask isnan
  // bf16 codes of one sign are ordered as their values; 0x7f80 stands for 2^128 while we measure distances.
  const auto value = [](std::uint32_t code) {
    return code == 0x7f80u ? 0x1p128 : static_cast<double>(std::bit_cast<float>(code << 16));
  };
  if (std::isinf(x)) return static_cast<std::uint16_t>(sign | 0x7f80u);
  const double size = std::abs(static_cast<double>(x));
  std::uint32_t low = 0, high = 0x7f80u;
  while (low + 1 < high) {
    const std::uint32_t middle = (low + high) / 2;
    (value(middle) <= size ? low : high) = middle;
  }
  const double below = size - value(low), above = value(high) - size;
  const std::uint32_t nearest = below < above || (below == above && low % 2 == 0) ? low : high;
  return static_cast<std::uint16_t>(sign | nearest);
}

float rounded(float x, DType type) {
  if (type == DType::f16) return f16_to_float(to_f16(x));
  return type == DType::bf16 ? std::bit_cast<float>(static_cast<std::uint32_t>(nearest_bf16(x)) << 16) : x;
}

double value_of_code(unsigned code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(code >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double fraction = std::ldexp(code & ((1u << mantissa_bits) - 1), -mantissa_bits);
  const double size =
      exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return code >> (exponent_bits + mantissa_bits) & 1 ? -size : size;
}

AttentionAnswer plain_attention(const AttentionShape& shape, const QueryView& queries,
                                const PlainRows& rows) {
  AttentionAnswer answer;
  std::vector<double> p(static_cast<std::size_t>(rows.length));
  for (std::int64_t t = 0; t < queries.tokens; ++t) {
    const std::int64_t seen =
        shape.causal ? std::max(std::int64_t{0}, rows.length - (queries.tokens - 1 - t)) : rows.length;
    for (std::int64_t h = 0; h < shape.h_q; ++h) {
      const float* q = queries.data + t * queries.token_stride + h * queries.head_stride;
      const std::int64_t kv_head = h * shape.h_kv / shape.h_q;
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      for (std::int64_t r = 0; r < seen; ++r) {
        const float* k = rows.key(r, kv_head);
        double dot = 0;
        for (std::int64_t i = 0; i < shape.d_qk; ++i) dot += static_cast<double>(q[i]) * k[i];
        p[r] = dot * static_cast<double>(shape.scale);
        top = std::max(top, p[r]);
      }
      answer.largest.push_back(top);
      for (std::int64_t r = 0; r < seen; ++r) sum += p[r] = std::exp(p[r] - top);
      std::vector<double> out(static_cast<std::size_t>(shape.d_v)), weight(out.size());
      for (std::int64_t r = 0; r < seen; ++r) {
        const float* v = rows.value(r, kv_head);
        for (std::int64_t i = 0; i < shape.d_v; ++i) {
          out[i] += p[r] / sum * v[i];
          weight[i] += p[r] / sum * std::abs(v[i]);
        }
      }
      answer.out.insert(answer.out.end(), out.begin(), out.end());
      answer.weight.insert(answer.weight.end(), weight.begin(), weight.end());
      answer.lse.push_back(seen > 0 ? top + std::log(sum) : std::numeric_limits<double>::infinity());
    }
  }
  return answer;
}

std::vector<double> plain_matmul(const std::vector<double>& x, const std::vector<double>& w, std::int64_t m,
                                 std::int64_t n, std::int64_t k) {
  std::vector<double> y(static_cast<std::size_t>(m * n));
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t o = 0; o < n; ++o) {
      for (std::int64_t j = 0; j < k; ++j) y[i * n + o] += x[i * k + j] * w[o * k + j];
    }
  }
  return y;
}

}  // namespace mla::test
