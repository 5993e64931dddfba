// Every leaf kernel of every instruction set against double-precision loops. Arrays end at an unreadable
// page, so a kernel that touches one element too many ends the run, and a canary stands before them.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "mla/kernels/leaf.h"
#include "mla/kernels/ops.h"
#include "support/edge.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Edge;
using test::Random;

std::vector<std::int64_t> lengths() {
  std::vector<std::int64_t> all;
  for (std::int64_t n = 0; n <= 70; ++n) all.push_back(n);
  for (const std::int64_t n : {127, 129, 576, 1001, 4099}) all.push_back(n);
  return all;
}

/// Error of a sum of n f32 products: each rounding 6e-8 of the running sum, growing as its square root.
double sum_error(double magnitude, std::int64_t n) {
  return 1.2e-7 * (2 + std::sqrt(static_cast<double>(n))) * magnitude;
}

class LeafTest : public testing::TestWithParam<Isa> {
 protected:
  const LeafKernels& leaf = leaf_kernels(GetParam());
  Random random{1};
};

TEST_P(LeafTest, NamesItsInstructionSet) {
  EXPECT_EQ(leaf.isa, GetParam());
}

TEST_P(LeafTest, Dot) {
  for (const std::int64_t n : lengths()) {
    Edge<float> a(random.values(n)), b(random.values(n));
    double expected = 0, magnitude = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      expected += static_cast<double>(a[i]) * b[i];
      magnitude += std::abs(static_cast<double>(a[i]) * b[i]);
    }
    EXPECT_NEAR(leaf.dot(a.data(), b.data(), n), expected, sum_error(magnitude, n)) << n;
  }
}

TEST_P(LeafTest, RmsNorm) {
  for (const std::int64_t n : lengths()) {
    for (const float epsilon : {1e-6f, 0.5f}) {
      const auto values = random.values(n);
      Edge<float> x(values), weight(random.values(n)), out(n), in_place(values);
      double squares = 0;
      for (const float v : values) squares += static_cast<double>(v) * v;
      leaf.rms_norm(x.data(), weight.data(), epsilon, out.data(), n);
      leaf.rms_norm(in_place.data(), weight.data(), epsilon, in_place.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        const double expected = values[i] * static_cast<double>(weight[i]) /
                                std::sqrt(squares / static_cast<double>(n) + epsilon);
        EXPECT_NEAR(out[i], expected, sum_error(std::abs(expected), n)) << n;
        EXPECT_EQ(out[i], in_place[i]) << n;
      }
    }
  }
  Edge<float> zero(std::vector<float>(17, 0.0f)), weight(random.values(17));
  leaf.rms_norm(zero.data(), weight.data(), 1e-6f, zero.data(), 17);
  for (std::int64_t i = 0; i < 17; ++i) EXPECT_EQ(zero[i], 0.0f);
}

/// The exp inside costs 2 units in the last place, the rest 2 more: 4 * 6e-8, twice.
TEST_P(LeafTest, Swiglu) {
  const auto expect_swiglu = [&](std::vector<float> gates) {
    const auto n = static_cast<std::int64_t>(gates.size());
    Edge<float> gate(gates), up(random.values(n)), out(n);
    leaf.swiglu(gate.data(), up.data(), out.data(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      const double expected = gates[i] / (1 + std::exp(-static_cast<double>(gates[i]))) * up[i];
      EXPECT_NEAR(out[i], expected, 5e-7 * std::abs(expected) + 1e-35) << gates[i];
    }
    leaf.swiglu(gate.data(), up.data(), gate.data(), n);
    EXPECT_EQ(0, std::memcmp(gate.data(), out.data(), static_cast<std::size_t>(n) * 4)) << "out may be gate";
  };
  for (const std::int64_t n : lengths()) expect_swiglu(random.values(n, 4));
  expect_swiglu({-1e30f, -1e5f,  -1000.f, -104.f, -103.f, -90.f,   -89.f,  -88.8f, -88.7f,
                 -88.f,  -87.5f, -87.f,   -50.f,  -17.f,  -1e-30f, -0.f,   0.f,    1e-30f,
                 0.5f,   17.f,   50.f,    87.f,   88.f,   89.f,    1000.f, 1e30f});
  const float nan = std::numeric_limits<float>::quiet_NaN(), one = 1.0f;
  float out = 0.0f;
  leaf.swiglu(&nan, &one, &out, 1);
  EXPECT_TRUE(std::isnan(out)) << "a NaN must not become a number";
  std::vector<float> fine;
  for (int i = -9000; i < 9000; ++i) fine.push_back(static_cast<float>(i) * 0.01f);
  expect_swiglu(fine);
}

TEST_P(LeafTest, AddScaled) {
  for (const std::int64_t n : lengths()) {
    const auto before = random.values(n);
    Edge<float> x(random.values(n)), y(before);
    leaf.add_scaled(x.data(), 0.37f, y.data(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      const double product = static_cast<double>(0.37f) * x[i];
      EXPECT_NEAR(y[i], before[i] + product, 1.2e-7 * (std::abs(product) + std::abs(before[i]))) << n;
    }
  }
}

TEST_P(LeafTest, Bf16ToF32IsExactForEveryCode) {
  std::vector<bf16> codes;
  for (std::uint32_t code = 0; code < 65536; ++code) codes.push_back({static_cast<std::uint16_t>(code)});
  for (const std::int64_t n : lengths()) {
    Edge<bf16> x(std::vector<bf16>(codes.end() - n, codes.end()));
    Edge<float> out(n);
    leaf.bf16_to_f32(x.data(), out.data(), n);
    for (std::int64_t i = 0; i < n; ++i)
      EXPECT_EQ(std::bit_cast<std::uint32_t>(out[i]), static_cast<std::uint32_t>(x[i].bits) << 16);
  }
  std::vector<float> all(65536);
  leaf.bf16_to_f32(codes.data(), all.data(), 65536);
  for (std::uint32_t code = 0; code < 65536; ++code)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(all[code]), code << 16);
}

TEST_P(LeafTest, F32ToBf16RoundsToNearestEven) {
  std::vector<float> values;
  for (std::uint32_t code = 0; code < 65536; code += 3) {  // every sign, exponent and parity
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      values.push_back(std::bit_cast<float>(code << 16 | low));
    }
  }
  std::vector<bf16> out(values.size());
  leaf.f32_to_bf16(values.data(), out.data(), static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i]))
      ASSERT_TRUE(std::isnan(to_float(out[i])));
    else
      ASSERT_EQ(out[i].bits, test::nearest_bf16(values[i])) << std::hexfloat << values[i];
  }
  for (const std::int64_t n : lengths()) {
    Edge<float> x(random.values(n));
    Edge<bf16> y(n);
    leaf.f32_to_bf16(x.data(), y.data(), n);
    for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i].bits, test::nearest_bf16(x[i])) << n;
  }
}

TEST_P(LeafTest, F16ToF32IsExact) {
  for (const std::int64_t n : {0, 1, 7, 17, 65536}) {
    Edge<std::uint16_t> x(n);
    for (std::int64_t i = 0; i < n; ++i) x[i] = static_cast<std::uint16_t>(n == 65536 ? i : 4099 * i + n);
    Edge<float> out(n);
    leaf.f16_to_f32(x.data(), out.data(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      const float value = f16_to_float(x[i]);
      if (std::isnan(value))
        EXPECT_TRUE(std::isnan(out[i])) << i;
      else
        EXPECT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(value)) << x[i];
    }
  }
}

TEST_P(LeafTest, F8ToF32IsExact) {
  for (const float scale : {1.0f, 0x1p-12f, 0.3f, 0x1p119f, 0x1p-140f}) {
    for (const std::int64_t n : {0, 1, 7, 17, 256}) {
      Edge<std::uint8_t> codes(n);
      for (std::int64_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(n == 256 ? i : 37 * i + n);
      Edge<float> out(n);
      leaf.f8_to_f32(codes.data(), scale, out.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        const float value = f8_e4m3_to_float(codes[i]) * scale;
        if (std::isnan(value))
          EXPECT_TRUE(std::isnan(out[i])) << i;
        else
          EXPECT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(value))
              << int{codes[i]};
      }
    }
  }
}

TEST_P(LeafTest, I8ToF32IsTheCodeTimesTheScale) {
  for (const float scale : {1.0f, 0x1p-12f, 0.3f}) {
    for (const std::int64_t n : {0, 1, 7, 17, 256}) {
      Edge<std::int8_t> codes(n);
      for (std::int64_t i = 0; i < n; ++i) codes[i] = static_cast<std::int8_t>(37 * i + n);
      Edge<float> out(n);
      leaf.i8_to_f32(codes.data(), scale, out.data(), n);
      for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(out[i], static_cast<float>(codes[i]) * scale) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, LeafTest, testing::ValuesIn(test::supported_isas()),
                         [](const auto& isa) { return std::string(name_of(isa.param)); });

TEST(OpsTest, WorkOnStridedRowsAndLeaveTheGapsAlone) {
  Random random(2);
  auto x = random.values(3 * 11), weight = random.values(7), y = random.values(3 * 9);
  const auto y_before = y, x_before = x;
  rms_norm({x.data(), 3, 7, 11}, weight, 1e-6, {x.data(), 3, 7, 11});
  add_scaled({x.data(), 3, 7, 11}, -2.0, {y.data(), 3, 7, 9});
  for (std::int64_t t = 0; t < 3; ++t) {
    double squares = 0;
    for (std::int64_t i = 0; i < 7; ++i) squares += std::pow(x_before[t * 11 + i], 2);
    for (std::int64_t i = 0; i < 11; ++i) {
      const double normed =
          i < 7 ? x_before[t * 11 + i] / std::sqrt(squares / 7 + 1e-6) * weight[i] : x_before[t * 11 + i];
      EXPECT_NEAR(x[t * 11 + i], normed, 1e-6);
    }
    for (std::int64_t i = 0; i < 9; ++i) {
      EXPECT_NEAR(y[t * 9 + i], y_before[t * 9 + i] - (i < 7 ? 2.0 * x[t * 11 + i] : 0.0), 1e-6);
    }
  }
}

}  // namespace
}  // namespace mla
