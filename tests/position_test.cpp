// Positions: rotary against complex numbers, YaRN and longrope against their papers, the additive ladder in
// closed form.
#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <limits>
#include <numbers>

#include "mla/position/additive.h"
#include "mla/position/rotary.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::error_of;
using test::Random;

RopeSpec plain(std::int64_t dim, RopeLayout layout = RopeLayout::interleaved, double theta = 10000.0) {
  RopeSpec spec;
  spec.dim = dim;
  spec.layout = layout;
  spec.theta = theta;
  return spec;
}

/// DeepSeek-V3's: 40 times 4096.
RopeSpec yarn() {
  RopeSpec spec = plain(64);
  spec.scaling = RopeScaling::yarn;
  spec.factor = 40;
  spec.original_context = 4096;
  return spec;
}

std::vector<float> rotated(const Rotary& rotary, std::int64_t position, std::vector<float> x) {
  Rotary::Table table;
  rotary.fill(position, 1, table);
  rotary.rotate(table, 0, x.data());
  return x;
}

double dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

/// Where pair i lies in a vector.
std::pair<std::int64_t, std::int64_t> pair_at(const RopeSpec& spec, std::int64_t i) {
  if (spec.layout == RopeLayout::interleaved) return {2 * i, 2 * i + 1};
  return {i, i + spec.dim / 2};
}

constexpr RopeLayout layouts[] = {RopeLayout::interleaved, RopeLayout::half_split};
constexpr std::int64_t positions[] = {0, 1, 2, 1000, 4095, 4096, 100'000, 163'839, 1'000'003};

TEST(RotaryTest, TurnsPairsAsComplexNumbers) {
  Random random(1);
  for (const RopeLayout layout : layouts) {
    for (const std::int64_t dim : {2, 4, 6, 64}) {
      for (const double theta : {10000.0, 500.0}) {
        const RopeSpec spec = plain(dim, layout, theta);
        const Rotary rotary(spec, 1);
        for (const std::int64_t position : positions) {
          const auto x = random.values(dim);
          const auto y = rotated(rotary, position, x);
          for (std::int64_t i = 0; i < dim / 2; ++i) {
            const auto [a, b] = pair_at(spec, i);
            const double frequency =
                std::exp(-2.0 * static_cast<double>(i) / static_cast<double>(dim) * std::log(theta));
            const double angle = static_cast<double>(position) * frequency;
            const std::complex<double> z = std::complex<double>(x[a], x[b]) * std::polar(1.0, angle);
            // Frequency and angle are f32, as the models were trained: each off by up to 6e-8 of the angle.
            const double allowed = std::hypot(x[a], x[b]) * (2e-7 + 1.3e-7 * angle);
            EXPECT_NEAR(y[a], z.real(), allowed) << dim << " at " << position << " pair " << i;
            EXPECT_NEAR(y[b], z.imag(), allowed) << dim << " at " << position << " pair " << i;
          }
        }
      }
    }
  }
}

/// The angle is the f32 product of position and frequency; its cosine and sine are right to f32.
TEST(RotaryTest, FarAnglesAreTheRoundedProduct) {
  const Rotary rotary(plain(64), 1);
  Rotary::Table table;
  for (const std::int64_t position : positions) {
    rotary.fill(position, 1, table);
    for (std::int64_t i = 0; i < 32; ++i) {
      const auto frequency = static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / 32));
      EXPECT_FLOAT_EQ(rotary.frequencies()[i], frequency);
      const double angle = static_cast<float>(position) * rotary.frequencies()[i];
      EXPECT_NEAR(table.cos[i], std::cos(angle), 6e-8);
      EXPECT_NEAR(table.sin[i], std::sin(angle), 6e-8);
    }
  }
}

TEST(RotaryTest, KeepsNormsAndDependsOnDistanceOnly) {
  Random random(2);
  for (const RopeLayout layout : layouts) {
    for (const RopeSpec& spec : {plain(64, layout), [&] {
                                   RopeSpec s = yarn();
                                   s.layout = layout;
                                   return s;
                                 }()}) {
      const Rotary rotary(spec, 1);
      const auto q = random.values(64), k = random.values(64);
      const double size = std::sqrt(dot(q, q) * dot(k, k));
      for (const std::int64_t distance : {0, 1, 17, 3000}) {
        const double expected = dot(rotated(rotary, distance, q), k);
        for (const std::int64_t position : positions) {
          const auto far_q = rotated(rotary, position + distance, q), far_k = rotated(rotary, position, k);
          EXPECT_NEAR(dot(far_q, far_q), dot(q, q), 1e-6 * dot(q, q));
          EXPECT_NEAR(dot(far_q, far_k), expected,
                      size * (1e-6 + 1.3e-7 * static_cast<double>(2 * position + distance)));
        }
      }
      EXPECT_GT(std::abs(dot(rotated(rotary, 3, q), k) - dot(q, k)), 1e-3 * size)
          << "but it does depend on it";
    }
  }
}

TEST(RotaryTest, PositionZeroChangesNothingAndRowsFollowOneAnother) {
  Random random(3);
  const Rotary rotary(plain(8), 1);
  const auto x = random.values(8);
  EXPECT_EQ(rotated(rotary, 0, x), x);
  EXPECT_EQ(rotary.dim(), 8);
  Rotary::Table table;
  rotary.fill(990, 20, table);
  for (std::int64_t t = 0; t < 20; ++t) {
    auto y = x;
    rotary.rotate(table, t, y.data());
    EXPECT_EQ(y, rotated(rotary, 990 + t, x)) << "the same bits in any table";
  }
}

TEST(RotaryTest, AttentionFactorMultiplies) {
  Random random(4);
  RopeSpec spec = plain(8);
  const auto x = random.values(8), expected = rotated(Rotary(spec, 1), 77, x);
  spec.attention_factor = 1.25;
  const auto found = rotated(Rotary(spec, 1), 77, x);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_NEAR(found[i], 1.25 * expected[i], 1e-6);
}

/// With 64 values, base 10000 and 4096 tokens: 32 turns end between pairs 10 and 11, one turn between 22
/// and 23. So pairs up to 10 keep their frequency, those from 23 on are slowed 40 times, and 13 steps of a
/// ramp lie between.
TEST(YarnTest, V3KeepsElevenPairsAndStretchesNine) {
  const auto exact = rope_frequencies(plain(64), 1), found = rope_frequencies(yarn(), 1);
  ASSERT_EQ(found.size(), 32u);
  for (std::size_t i = 0; i < 32; ++i) {
    const double stretched = i <= 10 ? 0 : i >= 23 ? 1 : (static_cast<double>(i) - 10) / 13;
    EXPECT_NEAR(found[i] / exact[i], 1 - stretched + stretched / 40, 1e-6) << i;
    const double turns = 4096 * static_cast<double>(exact[i]) / (2 * std::numbers::pi);
    if (turns > 36) {
      EXPECT_EQ(found[i], exact[i]) << i << " turns " << turns << " times in the trained context";
    }
    if (turns < 0.9) {
      EXPECT_NEAR(found[i], exact[i] / 40, 1e-6 * exact[i]) << i << " turns " << turns << " times";
    }
  }
}

TEST(YarnTest, UntruncatedRampBeginsAndEndsWhereTheTurnsAre) {
  RopeSpec spec = yarn();
  spec.truncate = false;
  const auto exact = rope_frequencies(plain(64), 1), found = rope_frequencies(spec, 1);
  // The pair (a fraction) that turns `turns` times: 10000^(-2i/64) * 4096 = 2 pi turns.
  const auto pair_of = [](double turns) {
    return 32 * std::log(4096 / (2 * std::numbers::pi * turns)) / std::log(10000.0);
  };
  for (std::size_t i = 0; i < 32; ++i) {
    const double along = (static_cast<double>(i) - pair_of(32)) / (pair_of(1) - pair_of(32));
    const double stretched = std::min(1.0, std::max(0.0, along));
    EXPECT_NEAR(found[i] / exact[i], 1 - stretched + stretched / 40, 1e-6) << i;
  }
}

/// Small contexts and dims push the ramp's ends out of range; frequencies must stay between stretched and
/// exact.
TEST(YarnTest, StaysInRangeAtTheEdges) {
  for (const std::int64_t dim : {2, 4, 8, 64}) {
    for (const std::int64_t context : {1, 7, 32, 4096, 1'000'000'000}) {
      for (const double factor : {1.0, 4.0, 40.0}) {
        RopeSpec spec = yarn();
        spec.dim = dim;
        spec.original_context = context;
        spec.factor = factor;
        const auto exact = rope_frequencies(plain(dim), 1), found = rope_frequencies(spec, 1);
        for (std::size_t i = 0; i < found.size(); ++i) {
          EXPECT_GE(found[i], exact[i] / factor * (1 - 1e-6));
          EXPECT_LE(found[i], exact[i]);
        }
      }
    }
  }
}

TEST(YarnTest, MscaleIsOneTenthOfTheLogarithm) {
  EXPECT_NEAR(yarn_mscale(40, 1), 1.3688879454113936, 1e-12);
  EXPECT_NEAR(yarn_mscale(40, 0.707), 1 + 0.1 * 0.707 * 3.6888794541139363, 1e-12);
  EXPECT_EQ(yarn_mscale(40, 0), 1);
  EXPECT_EQ(yarn_mscale(1, 1), 1);
  EXPECT_EQ(yarn_mscale(0.5, 1), 1);
  // the two softmax scales that the design page names
  EXPECT_NEAR(std::pow(192, -0.5) * std::pow(yarn_mscale(40, 1), 2), 0.1352338, 1e-7);
  EXPECT_NEAR(std::pow(192, -0.5) * std::pow(yarn_mscale(40, 0.707), 2), 0.1147214, 1e-7);
}

TEST(LongropeTest, LongestLengthChoosesTheDivisors) {
  RopeSpec spec = plain(6);
  spec.scaling = RopeScaling::longrope;
  spec.original_context = 100;
  spec.short_factor = {1, 1.5, 2};
  spec.long_factor = {3, 4, 50};
  const auto exact = rope_frequencies(plain(6), 1);
  for (const std::int64_t length : {1, 99, 100, 101, 5000}) {
    const auto found = rope_frequencies(spec, length);
    const auto& divisors = length > 100 ? spec.long_factor : spec.short_factor;
    for (std::size_t i = 0; i < 3; ++i)
      EXPECT_NEAR(found[i], exact[i] / divisors[i], 1e-7 * exact[i]) << length;
    EXPECT_EQ(Rotary(spec, length).frequencies(), found);
  }
  spec.long_factor = {1, 2};
  EXPECT_NO_THROW(Rotary(spec, 100));
  EXPECT_NE(error_of([&] { Rotary(spec, 101); }).find("found 2 longrope factors, expected 3"),
            std::string::npos);
  spec.short_factor = {};
  EXPECT_NE(error_of([&] { Rotary(spec, 100); }), "");
}

TEST(RotaryTest, RefusesOddDims) {
  for (const std::int64_t dim : {-2, 1, 7}) EXPECT_NE(error_of([&] { Rotary(plain(dim), 1); }), "") << dim;
}

TEST(RotaryTest, NoDimsTurnNothing) {
  const Rotary rotary(plain(0), 1);
  Rotary::Table table;
  rotary.fill(5, 3, table);
  float x = 7;
  rotary.rotate(table, 2, &x);
  EXPECT_EQ(x, 7);
}

/// Waves shorter than original / high are kept, those longer than original / low divided by the factor, and
/// between them the share that is kept falls with the wave's rotations.
TEST(RotaryTest, Llama3ByTheWaveLength) {
  RopeSpec spec = plain(64);
  spec.theta = 500'000;
  spec.scaling = RopeScaling::llama3;
  spec.factor = 8;
  spec.original_context = 8192;
  spec.low_freq_factor = 1;
  spec.high_freq_factor = 4;
  const auto found = rope_frequencies(spec, 1);
  int kept = 0, between = 0, divided = 0;
  for (std::size_t i = 0; i < 32; ++i) {
    const double exact = std::pow(500'000.0, -static_cast<double>(i) / 32);
    const double wave = 2 * std::numbers::pi / exact;
    double expected = exact;
    if (wave > 8192) {
      expected = exact / 8;
      ++divided;
    } else if (wave >= 8192.0 / 4) {
      const double smooth = (8192 / wave - 1) / (4 - 1);
      expected = (1 - smooth) * exact / 8 + smooth * exact;
      ++between;
    } else {
      ++kept;
    }
    EXPECT_NEAR(found[i], expected, 1e-6 * expected) << i;
  }
  EXPECT_TRUE(kept > 0 && between > 1 && divided > 0) << kept << " " << between << " " << divided;
}

TEST(AdditiveTest, AddsToEachRowItsPosition) {
  for (const auto kind : {PositionKind::rotary, PositionKind::none, PositionKind::integer,
                          PositionKind::binary, PositionKind::sinusoidal}) {
    std::vector<float> x(3 * 10, 0.5f);
    Buffer<float> memory;
    add_positions(kind, 41, {x.data(), 3, 6, 10}, memory);
    for (std::int64_t t = 0; t < 3; ++t) {
      std::vector<float> expected(6, 0.0f);
      if (kind == PositionKind::integer) integer_position(41 + t, 6, expected.data());
      if (kind == PositionKind::binary) binary_position(41 + t, 6, expected.data());
      if (kind == PositionKind::sinusoidal) sinusoidal_position(41 + t, 6, expected.data());
      for (std::int64_t i = 0; i < 10; ++i)
        EXPECT_EQ(x[static_cast<std::size_t>(t * 10 + i)], i < 6 ? 0.5f + expected[i] : 0.5f);
    }
  }
  float x = 0;
  Buffer<float> memory;
  EXPECT_NE(error_of([&] { add_positions(PositionKind::binary, -1, {&x, 1, 1}, memory); }), "");
}

TEST(AdditiveTest, IntegerAndBinary) {
  float out[70];
  integer_position(12345, 5, out);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(out[i], 12345);
  for (const std::int64_t position : {std::int64_t{0}, std::int64_t{1}, std::int64_t{6},
                                      std::int64_t{0x123456789}, std::numeric_limits<std::int64_t>::max()}) {
    binary_position(position, 70, out);
    std::uint64_t read = 0;
    for (int i = 0; i < 70; ++i) {
      ASSERT_TRUE(out[i] == 0 || out[i] == 1);
      if (out[i] == 1) read += std::uint64_t{1} << i;
    }
    EXPECT_EQ(read, static_cast<std::uint64_t>(position));
  }
}

TEST(AdditiveTest, SinusoidalIsItsFormula) {
  for (const std::int64_t dim : {1, 2, 7, 64}) {
    for (const std::int64_t position : {0, 1, 2, 1000, 100'000}) {
      std::vector<float> out(static_cast<std::size_t>(dim));
      sinusoidal_position(position, dim, out.data());
      for (std::int64_t i = 0; i < dim; ++i) {
        const double angle =
            static_cast<double>(position) /
            std::exp(std::log(10000.0) * static_cast<double>(i / 2 * 2) / static_cast<double>(dim));
        EXPECT_NEAR(out[i], i % 2 ? std::cos(angle) : std::sin(angle), 1e-7) << dim << " at " << position;
      }
    }
  }
  float other[4];
  sinusoidal_position(3, 4, other, 100.0);
  EXPECT_NEAR(other[2], std::sin(0.3), 1e-7);
}

/// A shift by k turns every pair by k times its frequency, wherever it starts.
TEST(AdditiveTest, ShiftIsRotation) {
  constexpr std::int64_t dim = 16;
  for (const std::int64_t start : {0, 5, 999}) {
    for (const std::int64_t shift : {1, 7, 500}) {
      float here[dim], there[dim];
      sinusoidal_position(start, dim, here);
      sinusoidal_position(start + shift, dim, there);
      for (std::int64_t i = 0; i < dim; i += 2) {
        const double turn = static_cast<double>(shift) * std::pow(10000.0, -static_cast<double>(i) / dim);
        EXPECT_NEAR(there[i], here[i] * std::cos(turn) + here[i + 1] * std::sin(turn), 3e-7);
        EXPECT_NEAR(there[i + 1], here[i + 1] * std::cos(turn) - here[i] * std::sin(turn), 3e-7);
      }
    }
  }
}

TEST(AdditiveTest, RefusesNegativePositionsAndEmptyDims) {
  float out[4];
  for (const auto encode : {+[](std::int64_t p, std::int64_t d, float*o) { integer_position(p, d, o); },
                            +[](std::int64_t p, std::int64_t d, float*o) { binary_position(p, d, o); },
                            +[](std::int64_t p, std::int64_t d, float*o) { sinusoidal_position(p, d, o); }}) {
    EXPECT_NE(error_of([&] { encode(-1, 4, out); }), "");
    EXPECT_NE(error_of([&] { encode(0, 0, out); }), "");
    EXPECT_EQ(error_of([&] { encode(0, 4, out); }), "");
  }
}

}  // namespace
}  // namespace mla
