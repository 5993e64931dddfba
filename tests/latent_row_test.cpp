// Quantised latent rows: every code and every rounding against slow rules, and rows that hold odd values.
#include "mla/kernels/latent_row.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "mla/cache/kv_cache.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::error_of;
using test::Random;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// The e4m3 code nearest to `x`, ties to the even code, by trying all finite ones.
unsigned nearest_code(double x) {
  unsigned best = 0;
  double best_distance = infinity;
  for (unsigned code = 0; code < 0x7f; ++code) {
    const double distance = std::abs(std::abs(x) - test::value_of_code(code, 4, 3));
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
      best = code;
      best_distance = distance;
    }
  }
  return best | (std::signbit(x) ? 0x80u : 0u);
}

TEST(Fp8Test, EveryCodeKeepsItsValue) {
  for (unsigned code = 0; code < 256; ++code) {
    const float value = f8_e4m3_to_float(static_cast<std::uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      EXPECT_EQ(value, test::value_of_code(code, 4, 3)) << code;
    }
    EXPECT_EQ(to_f8_e4m3(value), code);
  }
}

TEST(Fp8Test, RoundsEveryBf16ToTheNearestCode) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = to_float(bf16{static_cast<std::uint16_t>(bits)});
    if (std::isnan(value)) {
      EXPECT_EQ(to_f8_e4m3(value) & 0x7f, 0x7f) << bits;
    } else {
      EXPECT_EQ(to_f8_e4m3(value), nearest_code(value)) << value;
    }
  }
}

TEST(Fp8Test, RoundsBesideEveryTie) {
  for (unsigned code = 0; code < 0x7e; ++code) {
    const auto tie =
        static_cast<float>((test::value_of_code(code, 4, 3) + test::value_of_code(code + 1, 4, 3)) / 2);
    for (const float value : {std::nextafter(tie, 0.0f), tie, std::nextafter(tie, infinity)}) {
      EXPECT_EQ(to_f8_e4m3(value), nearest_code(value)) << value;
      EXPECT_EQ(to_f8_e4m3(-value), nearest_code(-static_cast<double>(value))) << -value;
    }
  }
}

/// A row written and read again.
std::vector<float> stored(const RowLayout& layout, const std::vector<float>& values) {
  std::vector<std::byte> row(static_cast<std::size_t>(layout.bytes() + 4), std::byte{0x5a});
  layout.write(values.data(), row.data());
  EXPECT_EQ(row[static_cast<std::size_t>(layout.bytes())], std::byte{0x5a}) << "wrote too far";
  std::vector<float> read(values.size() + 1, 7.0f);
  layout.read(row.data(), layout.values(), read.data());
  EXPECT_EQ(read.back(), 7.0f);
  read.pop_back();
  return read;
}

float largest(const std::vector<float>& values, std::int64_t first, std::int64_t end) {
  float top = 0;
  for (std::int64_t i = first; i < end; ++i) top = std::max(top, std::abs(values[i]));
  return top;
}

TEST(QuantisedRowTest, CountsBytes) {
  const struct {
    DType type;
    std::int64_t d_c, d_r, bytes;
  } cases[] = {{DType::f8_e4m3, 512, 64, 656}, {DType::i8, 512, 64, 656},    {DType::f8_e4m3, 64, 16, 100},
               {DType::i8, 64, 16, 112},       {DType::f8_e4m3, 1, 0, 8},    {DType::i8, 1, 0, 20},
               {DType::f8_e4m3, 129, 3, 148},  {DType::i8, 129, 3, 156},     {DType::f8_e4m3, 128, 0, 132},
               {DType::i8, 130, 1, 152},       {DType::f8_e4m3, 130, 1, 144}};
  for (const auto& c : cases) {
    const RowLayout layout = RowLayout::latent(c.d_c, c.d_r, c.type);
    EXPECT_EQ(layout.bytes(), c.bytes) << c.d_c << "+" << c.d_r;
    EXPECT_EQ(layout.head_bytes(), c.bytes);
    EXPECT_EQ(layout.values(), c.d_c + c.d_r);
    EXPECT_EQ(layout.value_offset(), 0);
  }
  for (const DType type : {DType::f8_e4m3, DType::i8}) {
    EXPECT_NE(error_of([&] { RowLayout::heads(2, 4, 4, type); }).find(name_of(type)), std::string::npos);
    EXPECT_NE(error_of([&] { RowLayout::latent(0, 4, type); }), "");
  }
}

/// fp8: each value is the nearest of its block's codes times the least sufficient power of four.
TEST(QuantisedRowTest, Fp8StoresTheNearestMultipleOfItsBlocksScale) {
  Random random(1);
  for (const std::int64_t d_c : {1, 7, 64, 127, 128, 129, 300, 512}) {
    for (const double size : {1e-30, 1e-3, 1.0, 500.0, 1e30}) {
      const RowLayout layout = RowLayout::latent(d_c, 3, DType::f8_e4m3);
      auto values = random.values(layout.values(), size);
      for (std::int64_t i = 0; i < d_c; i += 5) values[i] *= 0x1p-9f;  // subnormal codes too
      const auto read = stored(layout, values);
      for (std::int64_t first = 0; first < d_c; first += 128) {
        const std::int64_t end = std::min(first + 128, d_c);
        double scale = 0x1p-116;
        while (448 * scale < largest(values, first, end)) scale *= 4;
        for (std::int64_t i = first; i < end; ++i) {
          const unsigned code = nearest_code(values[i] / scale);
          ASSERT_EQ(read[i], static_cast<float>(test::value_of_code(code, 4, 3) * scale)) << d_c << " " << i;
          ASSERT_EQ(read[i], test::rounded(read[i], DType::bf16)) << "decodes to bf16 exactly";
        }
      }
      for (std::int64_t i = d_c; i < d_c + 3; ++i) EXPECT_EQ(read[i], test::rounded(values[i], DType::bf16));
    }
  }
}

/// int8: within half a step of the row's scale, largest / 127; the rotated key to bf16's precision twice.
TEST(QuantisedRowTest, Int8StoresTheNearestOf255Steps) {
  Random random(2);
  for (const std::int64_t d_c : {1, 7, 64, 129, 512}) {
    for (const double size : {1e-20, 1.0, 1e30}) {
      const RowLayout layout = RowLayout::latent(d_c, 3, DType::i8);
      const auto values = random.values(layout.values(), size);
      const auto read = stored(layout, values);
      const double step = static_cast<double>(largest(values, 0, d_c)) / 127;
      for (std::int64_t i = 0; i < d_c; ++i)
        EXPECT_LE(std::abs(read[i] - values[i]), step * (0.5 + 1e-4)) << d_c << " " << i;
      for (std::int64_t i = d_c; i < d_c + 3; ++i)
        EXPECT_LE(std::abs(read[i] - values[i]), std::abs(values[i]) * 0x1.01p-8);
    }
  }
}

TEST(QuantisedRowTest, Int8KeepsWhatKernelsNeedBesideTheCodes) {
  Random random(3);
  for (const std::int64_t d_c : {1, 4, 5, 8, 130}) {
    const LatentRow at = latent_row(DType::i8, d_c, 2);
    std::vector<std::byte> row(static_cast<std::size_t>(at.bytes));
    encode_latent(DType::i8, at, random.values(d_c + 2).data(), row.data());
    Int8Scale scale;
    std::memcpy(&scale, row.data() + at.scales, sizeof scale);
    std::int64_t sums[2] = {};
    for (std::int64_t i = 0; i < d_c; ++i) sums[i % 8 < 4 ? 0 : 1] += static_cast<std::int8_t>(row[i]);
    EXPECT_EQ(scale.start[0], -128 * sums[0]);
    EXPECT_EQ(scale.start[1], -128 * sums[1]);
    EXPECT_FLOAT_EQ(scale.log2_scale, std::log2(scale.scale));
  }
}

TEST(QuantisedRowTest, ZeroRowsAndExtremesDecode) {
  for (const DType type : {DType::f8_e4m3, DType::i8}) {
    const RowLayout layout = RowLayout::latent(130, 2, type);
    std::vector<float> values(132, 0.0f);
    for (const float x : stored(layout, values)) EXPECT_EQ(x, 0.0f);
    values[131] = 3.0f;  // a rotated key beside a latent of zeros
    EXPECT_EQ(stored(layout, values)[131], 3.0f);
    values[0] = std::numeric_limits<float>::max();
    values[129] = -std::numeric_limits<float>::denorm_min();
    const auto read = stored(layout, values);
    EXPECT_TRUE(std::isfinite(read[0]));
    EXPECT_GT(read[0], 1e38f);
    if (type == DType::f8_e4m3) {
      EXPECT_EQ(read[0], 448 * 0x1p118f) << "saturates";
    }
    EXPECT_EQ(read[129], 0.0f);
  }
}

TEST(QuantisedRowTest, WhatIsNoNumberNeverBecomesOne) {
  for (const float bad : {nan, infinity, -infinity}) {
    for (const std::int64_t at : {0, 127, 128, 129}) {
      std::vector<float> values(132, 0.5f);
      values[at] = bad;
      const auto fp8 = stored(RowLayout::latent(130, 2, DType::f8_e4m3), values);
      const auto int8 = stored(RowLayout::latent(130, 2, DType::i8), values);
      for (std::int64_t i = 0; i < 130; ++i) {
        EXPECT_EQ(std::isnan(fp8[i]), i / 128 == at / 128) << at << " " << i;
        EXPECT_TRUE(std::isnan(int8[i])) << at << " " << i;
      }
      EXPECT_EQ(fp8[131], 0.5f);
    }
    std::vector<float> values(132, 0.5f);
    values[130] = bad;  // the rotated key is bf16, which has them
    for (const DType type : {DType::f8_e4m3, DType::i8}) {
      const auto read = stored(RowLayout::latent(130, 2, type), values);
      EXPECT_EQ(std::isnan(read[130]), std::isnan(bad));
      EXPECT_FALSE(std::isfinite(read[130]));
      EXPECT_NEAR(read[0], 0.5f, 0.002f);
      EXPECT_NEAR(read[131], 0.5f, 0.002f);
    }
  }
}

TEST(QuantisedRowTest, ReadsTheFirstValuesAlone) {
  Random random(4);
  for (const DType type : {DType::f8_e4m3, DType::i8}) {
    const RowLayout layout = RowLayout::latent(130, 5, type);
    const auto values = random.values(135);
    std::vector<std::byte> row(static_cast<std::size_t>(layout.bytes()));
    layout.write(values.data(), row.data());
    const auto all = stored(layout, values);
    for (const std::int64_t count : {0, 1, 128, 129, 130, 131, 135}) {
      std::vector<float> some(136, 7.0f);
      layout.read(row.data(), count, some.data());
      EXPECT_TRUE(std::equal(some.begin(), some.begin() + count, all.begin())) << count;
      EXPECT_EQ(some[count], 7.0f);
    }
  }
}

}  // namespace
}  // namespace mla
