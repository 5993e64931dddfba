// AdamW and the schedule against their formulas in double.
#include "mla/train/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "mla/train/schedule.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::error_of;

/// AdamW by its definition, one value at a time.
struct PlainAdamW {
  AdamWOptions options;
  double w = 0, m = 0, v = 0;

  void step(double g, double rate, double decay, int t) {
    m = options.beta1 * m + (1 - options.beta1) * g;
    v = options.beta2 * v + (1 - options.beta2) * g * g;
    const double mean = m / (1 - std::pow(options.beta1, t)), square = v / (1 - std::pow(options.beta2, t));
    w -= rate * (mean / (std::sqrt(square) + options.epsilon) + decay * w);
  }
};

/// 20 steps over `size` values of which [3, size / 2) decay, [size / 2 + 1, size) don't and the rest is not
/// trained.
struct Training {
  explicit Training(std::int64_t size, int steps = 20) : first(test::Random(7).values(size)), values(first) {
    test::Random random(8);
    const std::vector<TrainedRange> ranges{{3, size / 2 - 3, true},
                                           {size / 2 + 1, size - size / 2 - 1, false}};
    AdamW adamw({}, size, ranges);
    for (int t = 0; t < steps; ++t) {
      gradients.push_back(random.values(size, std::pow(10.0, t % 5 - 3)));
      adamw.step(values, gradients.back(), rate(t), 0.5);
    }
    m.assign(adamw.first_moments().begin(), adamw.first_moments().end());
    v.assign(adamw.second_moments().begin(), adamw.second_moments().end());
  }
  static double rate(int t) { return 0.01 / (1 + t); }

  std::vector<float> first, values, m, v;
  std::vector<std::vector<float>> gradients;
};

TEST(AdamWTest, AgreesWithItsDefinition) {
  for (const std::int64_t size : {16, 37, 100, 16384 * 2 + 9}) {
    const Training run(size);
    for (std::int64_t i = 0; i < size; ++i) {
      const auto at = static_cast<std::size_t>(i);
      if (i < 3 || i == size / 2) {
        ASSERT_EQ(run.values[at], run.first[at]) << i;
        continue;
      }
      PlainAdamW plain{{}, run.first[at]};
      for (int t = 0; t < 20; ++t)
        plain.step(0.5 * run.gradients[static_cast<std::size_t>(t)][at], Training::rate(t),
                   i < size / 2 ? 0.1 : 0, t + 1);
      ASSERT_NEAR(run.values[at], plain.w, 2e-6 + 2e-6 * std::abs(plain.w)) << i << " of " << size;
      ASSERT_NEAR(run.v[at], plain.v, 1e-5 * plain.v) << i << " of " << size;
    }
  }
}

TEST(AdamWTest, SameBitsAtAnyNumberOfThreads) {
  const std::int64_t size = 16384 * 11 + 5;
  std::vector<Training> runs;
  std::vector<double> norms;
  for (const int count : {1, 2, 3}) {
    const test::Threads threads(count);
    runs.emplace_back(size, 3);
    norms.push_back(gradient_norm(runs.back().gradients[1]));
  }
  for (const std::size_t i : {1u, 2u}) {
    EXPECT_EQ(runs[i].values, runs[0].values);
    EXPECT_EQ(runs[i].m, runs[0].m);
    EXPECT_EQ(runs[i].v, runs[0].v);
    EXPECT_EQ(std::memcmp(&norms[i], &norms[0], sizeof(double)), 0);
  }
}

TEST(AdamWTest, GoesOnFromSavedState) {
  const std::int64_t size = 50;
  const std::vector<TrainedRange> all{{0, size, true}};
  test::Random random(3);
  std::vector<std::vector<float>> gradients;
  for (int t = 0; t < 6; ++t) gradients.push_back(random.values(size));
  std::vector<float> straight = random.values(size), resumed = straight;

  AdamW whole({}, size, all), before({}, size, all), after({}, size, all);
  for (const auto& g : gradients) whole.step(straight, g, 0.1, 1);
  for (int t = 0; t < 3; ++t) before.step(resumed, gradients[static_cast<std::size_t>(t)], 0.1, 1);
  EXPECT_EQ(before.steps(), 3);
  std::ranges::copy(before.first_moments(), after.first_moments().begin());
  std::ranges::copy(before.second_moments(), after.second_moments().begin());
  after.resume_at(before.steps());
  for (int t = 3; t < 6; ++t) after.step(resumed, gradients[static_cast<std::size_t>(t)], 0.1, 1);
  EXPECT_EQ(resumed, straight);
}

TEST(AdamWTest, StateThatFadesEndsAtZero) {
  const std::vector<TrainedRange> all{{0, 3, false}};
  AdamW adamw({}, 3, all);
  std::vector<float> values(3), gradients{1e-3f, 1.0f, -1e-3f};
  adamw.step(values, gradients, 0.1, 1);
  std::ranges::fill(gradients, 0.0f);
  for (int t = 0; t < 3000; ++t) {
    adamw.step(values, gradients, 0.1, 1);
    for (const float state : adamw.second_moments()) ASSERT_TRUE(state == 0 || std::isnormal(state)) << t;
    for (const float state : adamw.first_moments()) ASSERT_TRUE(state == 0 || std::isnormal(state)) << t;
  }
  for (const float state : adamw.second_moments()) EXPECT_EQ(state, 0.0f);
}

TEST(AdamWTest, RefusesWhatIsNoStep) {
  const std::vector<TrainedRange> all{{0, 4, true}};
  AdamW adamw({}, 4, all);
  std::vector<float> values(4, 1.0f), gradients(4, 1.0f);
  const std::vector<float> before = values;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(error_of([&] { adamw.step(values, gradients, 0.1, nan); }),
            "AdamW: scale of gradients: found nan, expected a number from 0 on (is a gradient not finite?)");
  EXPECT_NE(error_of([&] { adamw.step(values, gradients, -0.1, 1); }), "");
  EXPECT_NE(error_of([&] { adamw.step(values, std::span(gradients).first(3), 0.1, 1); }), "");
  EXPECT_EQ(values, before);
  EXPECT_EQ(adamw.steps(), 0);

  const auto made = [](const AdamWOptions& options, std::vector<TrainedRange> ranges) {
    return error_of([&] { AdamW(options, 4, ranges); });
  };
  EXPECT_EQ(made({}, {{0, 2, true}, {1, 2, true}}),
            "AdamW: range: found 2 values from 1 on, expected ranges in order, apart and within 4 values");
  EXPECT_NE(made({}, {{0, 5, true}}), "");
  EXPECT_NE(made({}, {{2, INT64_MAX, true}}), "");
  EXPECT_NE(made({1.0, 0.95, 1e-8, 0.1}, {}), "");
  EXPECT_NE(made({0.9, -0.1, 1e-8, 0.1}, {}), "");
  EXPECT_NE(made({0.9, 0.95, 0, 0.1}, {}), "");
  EXPECT_NE(made({0.9, 0.95, 1e-8, nan}, {}), "");
  EXPECT_EQ(made({}, {{0, 2, true}, {2, 2, false}}), "");
}

TEST(GradientNormTest, IsTheRootOfTheSumOfSquares) {
  for (const std::int64_t size : {0, 1, 7, 8, 9, 1000, 16384, 16385, 70001}) {
    const std::vector<float> x = test::Random(5).values(size);
    long double sum = 0;
    for (const float value : x) sum += static_cast<long double>(value) * value;
    EXPECT_NEAR(gradient_norm(x), static_cast<double>(std::sqrt(sum)),
                1e-12 * std::sqrt(static_cast<double>(size + 1)))
        << size;
  }
  const std::vector<float> large(100, 3e38f);
  EXPECT_NEAR(gradient_norm(large) / 3e39, 1, 1e-6);
}

TEST(GradientNormTest, ReportsWhatIsNotFinite) {
  for (const std::size_t at : {0u, 5u, 20000u, 39999u}) {
    std::vector<float> x(40000, 1.0f);
    x[at] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(gradient_norm(x)));
    x[at] = -std::numeric_limits<float>::infinity();
    EXPECT_TRUE(std::isinf(gradient_norm(x)));
  }
  EXPECT_TRUE(std::isnan(clip_factor(std::numeric_limits<double>::quiet_NaN(), 1)));
  EXPECT_TRUE(std::isnan(clip_factor(std::numeric_limits<double>::infinity(), 1)));
}

TEST(GradientNormTest, ClipsOnlyAboveTheLimit) {
  EXPECT_EQ(clip_factor(0, 1), 1.0);
  EXPECT_EQ(clip_factor(1, 1), 1.0);
  EXPECT_EQ(clip_factor(4, 1), 0.25);
  EXPECT_EQ(error_of([] { clip_factor(1, 0); }),
            "gradient clipping: found the limit 0, expected one above 0");
}

TEST(ScheduleTest, WarmsUpAndFallsToTheFloor) {
  const Schedule schedule{1.0, 0.1, 10, 111};
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 0), 1.0 / 11);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 4), 5.0 / 11);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 60), 0.55);                                    // half way
  EXPECT_NEAR(learning_rate(schedule, 35), 0.1 + 0.9 * (0.5 + std::sqrt(0.125)), 1e-15);  // a quarter
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 110), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(schedule, 100000), 0.1);
  for (std::int64_t step = 10; step < 110; ++step)
    EXPECT_GT(learning_rate(schedule, step), learning_rate(schedule, step + 1));
}

TEST(ScheduleTest, ShortOnes) {
  EXPECT_EQ(learning_rate({2.0, 0.5, 0, 1}, 0), 2.0);
  EXPECT_EQ(learning_rate({2.0, 0.5, 0, 2}, 0), 2.0);
  EXPECT_EQ(learning_rate({2.0, 0.5, 0, 2}, 1), 0.5);
  EXPECT_EQ(learning_rate({2.0, 0.5, 1, 2}, 0), 1.0);
  EXPECT_EQ(learning_rate({2.0, 0.5, 1, 2}, 1), 2.0);
}

TEST(ScheduleTest, RefusesWhatIsNone) {
  EXPECT_EQ(error_of([] {
              learning_rate({1.0, 2.0, 0, 10}, 0);
            }),
            "learning rate: found a peak of 1 and a floor of 2, expected 0 <= floor <= peak, peak above 0");
  EXPECT_NE(error_of([] { learning_rate({1.0, 0.1, 10, 10}, 0); }), "");
  EXPECT_NE(error_of([] { learning_rate({1.0, 0.1, 0, 10}, -1); }), "");
  EXPECT_NE(error_of([] { learning_rate({0.0, 0.0, 0, 10}, 0); }), "");
}

}  // namespace
}  // namespace mla
