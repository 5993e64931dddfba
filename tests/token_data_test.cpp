// Random streams against known values and moments; batches against a plain reading of their definition.
#include "mla/train/token_data.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <numeric>
#include <set>

#include "mla/core/random.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::error_of;

TEST(RandomStreamTest, SplitMix64) {
  // The published generator from state 1234567: its first outputs.
  std::uint64_t state = 1234567;
  for (const std::uint64_t expected : {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                       4593380528125082431u, 16408922859458223821u}) {
    EXPECT_EQ(mix_bits(state += 0x9e3779b97f4a7c15u), expected);
  }
}

TEST(RandomStreamTest, StreamsDiffer) {
  std::set<std::uint64_t> seen;
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    for (std::uint64_t stream = 0; stream < 30; ++stream) {
      RandomStream random(seed, stream), again(seed, stream);
      for (int i = 0; i < 10; ++i) {
        const std::uint64_t bits = random.bits();
        EXPECT_EQ(bits, again.bits());
        EXPECT_TRUE(seen.insert(bits).second) << seed << " " << stream;
      }
    }
  }
}

TEST(RandomStreamTest, BelowIsEven) {
  RandomStream random(1);
  std::array<int, 6> counts{};
  for (int i = 0; i < 60000; ++i) ++counts.at(static_cast<std::size_t>(random.below(6)));
  for (const int count : counts) EXPECT_NEAR(count, 10000, 450);  // 5 sigma
  EXPECT_EQ(random.below(1), 0);
  // 3/4 of 2^63: of a plain remainder of 2^64, a third would lie in the first half too often
  constexpr std::int64_t range = std::int64_t{3} << 61;
  int low = 0;
  for (int i = 0; i < 10000; ++i) low += random.below(range) < range / 2;
  EXPECT_NEAR(low, 5000, 250);
  EXPECT_NE(error_of([&] { random.below(0); }), "");
}

TEST(RandomStreamTest, LogIsALogarithm) {
  test::Random random(2);
  for (int i = 0; i < 20000; ++i) {
    const double x = std::ldexp(1 + 0.5 * random.unit(), static_cast<int>(random.below(2000)) - 1000);
    const long double expected = std::log(static_cast<long double>(x));
    ASSERT_NEAR(reproducible_log(x), static_cast<double>(expected),
                1e-15 * std::max(1.0, std::abs(static_cast<double>(expected))))
        << x;
  }
  EXPECT_EQ(reproducible_log(1.0), 0.0);
  EXPECT_NEAR(reproducible_log(0x1p-1060), -1060 * std::log(2.0), 1e-12);
}

TEST(RandomStreamTest, NormalHasTheMomentsAndTailsOfOne) {
  RandomStream random(3, 14);
  constexpr int n = 400000;
  double sum = 0, square = 0, fourth = 0, product = 0, last = 0;
  int beyond_1 = 0, beyond_3 = 0;
  for (int i = 0; i < n; ++i) {
    const double x = random.normal();
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
    product += x * last;
    beyond_1 += std::abs(x) > 1;
    beyond_3 += std::abs(x) > 3;
    last = x;
  }
  EXPECT_NEAR(sum / n, 0, 0.008);
  EXPECT_NEAR(square / n, 1, 0.012);
  EXPECT_NEAR(fourth / n, 3, 0.08);
  EXPECT_NEAR(product / n, 0, 0.008);
  EXPECT_NEAR(beyond_1 / double{n}, std::erfc(1 / std::sqrt(2.0)), 0.004);
  EXPECT_NEAR(beyond_3 / double{n}, std::erfc(3 / std::sqrt(2.0)), 0.0004);
}

TEST(RandomStreamTest, NormalIsTheSameOnEveryMachine) {
  RandomStream random(42);
  for (const double expected :
       {0x1.c34849290db3dp-1, -0x1.0a1a14722000bp+0, 0x1.447895e7da701p+0, 0x1.652a03e96546ep-1})
    EXPECT_EQ(random.normal(), expected);
}

/// A text whose ids are their places, so that a batch tells where it was read.
std::vector<std::int32_t> places(std::int64_t count) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

std::vector<std::int32_t> inputs_of(TokenData& data, std::int64_t step) {
  TokenBatch batch;
  data.read(step, batch);
  return batch.inputs;
}

TEST(TokenDataTest, HoldsBackTheEnd) {
  const TokenData data(places(1000), {16, 4, 0.1, 0});
  EXPECT_EQ(data.training().size(), 900u);
  EXPECT_EQ(data.training().back(), 899);
  ASSERT_EQ(data.held_back().size(), 100u);
  EXPECT_EQ(data.held_back().front(), 900);
  EXPECT_TRUE(TokenData(places(1000), {16, 4, 0, 0}).held_back().empty());
}

TEST(TokenDataTest, EachEpochReadsEachWindowOnce) {
  for (const std::int64_t count : {9, 10, 15, 16, 17, 24, 25, 100, 1003}) {
    TokenData data(places(count), {8, 1, 0, 5});
    const std::int64_t windows = data.windows_per_epoch();
    EXPECT_GE(windows, 1);
    EXPECT_GT((windows + 2) * 8, count) << "too much is left out";
    std::set<std::int32_t> offsets;
    for (std::int64_t epoch = 0; epoch < 60; ++epoch) {
      std::set<std::int32_t> firsts;
      for (std::int64_t w = 0; w < windows; ++w) {
        TokenBatch batch;
        data.read(epoch * windows + w, batch);
        ASSERT_EQ(batch.inputs.size(), 8u);
        ASSERT_EQ(batch.targets.size(), 8u);
        for (std::size_t i = 0; i < 8; ++i) {
          ASSERT_EQ(batch.inputs[i], batch.inputs[0] + static_cast<std::int32_t>(i));
          ASSERT_EQ(batch.targets[i], batch.inputs[i] + 1);
        }
        ASSERT_GE(batch.inputs[0], 0);
        ASSERT_LT(batch.targets[7], count);
        firsts.insert(batch.inputs[0]);
      }
      ASSERT_EQ(static_cast<std::int64_t>(firsts.size()), windows);
      ASSERT_EQ(*firsts.rbegin() - *firsts.begin(), (windows - 1) * 8);
      offsets.insert(*firsts.begin());
    }
    const std::size_t possible = static_cast<std::size_t>(std::min<std::int64_t>(8, count - windows * 8));
    EXPECT_EQ(offsets.size(), possible) << count;  // each offset turns up in 60 epochs
  }
}

TEST(TokenDataTest, AStepNeedsNoneBeforeIt) {
  const TokenDataOptions options{8, 3, 0.05, 11};
  TokenData in_order(places(500), options);
  std::vector<std::vector<std::int32_t>> batches;
  for (std::int64_t step = 0; step < 80; ++step) batches.push_back(inputs_of(in_order, step));
  for (const std::int64_t step : {79, 3, 41, 19, 20, 0}) {
    TokenData resumed(places(500), options);
    EXPECT_EQ(inputs_of(resumed, step), batches[static_cast<std::size_t>(step)]) << step;
    EXPECT_EQ(inputs_of(in_order, step), batches[static_cast<std::size_t>(step)]) << step;
  }
  EXPECT_DOUBLE_EQ(in_order.epochs(80), 240.0 / static_cast<double>(in_order.windows_per_epoch()));
}

TEST(TokenDataTest, SeedsAndEpochsDiffer) {
  TokenData one(places(4000), {16, 8, 0, 1}), other(places(4000), {16, 8, 0, 2});
  EXPECT_NE(inputs_of(one, 0), inputs_of(other, 0));
  TokenData epochs(places(161), {16, 9, 0, 1});  // 9 windows: a step is an epoch
  ASSERT_EQ(epochs.windows_per_epoch(), 9);
  EXPECT_NE(inputs_of(epochs, 0), inputs_of(epochs, 1));
}

TEST(TokenDataTest, ErrorsNameWhatIsTooShort) {
  const auto made = [](std::int64_t count, const TokenDataOptions& options) {
    return error_of([&] { TokenData(places(count), options); });
  };
  EXPECT_EQ(made(16, {16, 1, 0, 0}),
            "text to train on: found 16 tokens, expected at least 17: one sequence and the token after it");
  EXPECT_EQ(made(17, {16, 1, 0, 0}), "");
  EXPECT_EQ(made(18, {16, 1, 0.1, 0}),
            "held-back text: found 1 tokens, the share 0.1 of 18, expected at least 2");
  EXPECT_NE(made(0, {16, 1, 0, 0}), "");
  EXPECT_NE(made(100, {0, 1, 0, 0}), "");
  EXPECT_NE(made(100, {16, 0, 0, 0}), "");
  EXPECT_NE(made(100, {16, 1, 1.0, 0}), "");
  EXPECT_NE(made(100, {16, 1, -0.1, 0}), "");
  EXPECT_NE(error_of([] {
              TokenData data(places(100), {16, 1, 0, 0});
              inputs_of(data, -1);
            }),
            "");
}

}  // namespace
}  // namespace mla
