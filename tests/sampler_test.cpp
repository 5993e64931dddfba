// Drawing tokens: greedy, by temperature, from the best k, from the nucleus.
#include "mla/model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "support/oracle.h"

namespace mla {
namespace {

using test::error_of;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

SamplerOptions options(double temperature, std::int64_t top_k = 0, double top_p = 1.0,
                       std::uint64_t seed = 1) {
  return {temperature, top_k, top_p, seed};
}

/// How often each id comes in `draws` draws.
std::vector<int> histogram(const SamplerOptions& o, const std::vector<float>& logits, int draws) {
  Sampler sampler(o);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) ++counts.at(static_cast<std::size_t>(sampler.next(logits)));
  return counts;
}

/// Probabilities of a softmax at `temperature` over the ids that `kept` allows.
std::vector<double> softmax(const std::vector<float>& logits, double temperature,
                            const std::vector<bool>& kept) {
  std::vector<double> p(logits.size());
  for (std::size_t i = 0; i < p.size(); ++i) p[i] = kept[i] ? std::exp(logits[i] / temperature) : 0;
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

/// Pearson's chi-squared of counts against probabilities; ids of probability 0 must not come at all.
double chi_squared(const std::vector<int>& counts, const std::vector<double>& p, int draws) {
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) {
      EXPECT_EQ(counts[i], 0) << i;
      continue;
    }
    sum += std::pow(counts[i] - draws * p[i], 2) / (draws * p[i]);
  }
  return sum;
}

const std::vector<float> logits{1.0f, -0.5f, 2.0f, 0.3f, 1.9f, -2.0f, 0.0f, 1.0f};

TEST(SamplerTest, GreedyTakesTheLargestAndTheLowestIdAmongEquals) {
  Sampler sampler(options(0));
  EXPECT_EQ(sampler.next(logits), 2);
  EXPECT_EQ(sampler.next(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(sampler.next(std::vector<float>{-5}), 0);
  EXPECT_EQ(sampler.next(std::vector<float>{-infinity, -1e30f, -infinity}), 1);
  EXPECT_EQ(Sampler(options(2.0, 1)).next(std::vector<float>{1, 3, 3, 2}), 1)
      << "the best one is greedy at any temperature";
  EXPECT_EQ(Sampler(options(1e-300)).next(logits), 2);
  EXPECT_EQ(Sampler(options(1.0, 0, 1e-12)).next(logits), 2) << "the smallest nucleus is the best token";
}

/// 99.99 % of chi-squared with 7 degrees of freedom lie below 29.9; the seeds are fixed, so this passes or
/// fails for good.
TEST(SamplerTest, DrawsTheSoftmaxAtItsTemperature) {
  constexpr int draws = 40'000;
  const std::vector<bool> all(logits.size(), true);
  for (const double temperature : {0.5, 1.0, 3.0}) {
    for (const std::uint64_t seed : {1, 2}) {
      const auto counts = histogram(options(temperature, 0, 1.0, seed), logits, draws);
      EXPECT_LT(chi_squared(counts, softmax(logits, temperature, all), draws), 29.9)
          << temperature << ", seed " << seed;
      EXPECT_GT(chi_squared(counts, softmax(logits, temperature * 1.2, all), draws), 100)
          << "the test can tell temperatures apart";
    }
  }
}

TEST(SamplerTest, TopKKeepsTheBestK) {
  constexpr int draws = 20'000;
  EXPECT_LT(chi_squared(histogram(options(1, 3), logits, draws),
                        softmax(logits, 1, {true, false, true, false, true, false, false, false}), draws),
            29.9)
      << "0 and 7 are equal: the lower id is kept";
  EXPECT_LT(chi_squared(histogram(options(1, 4), logits, draws),
                        softmax(logits, 1, {true, false, true, false, true, false, false, true}), draws),
            29.9);
  for (const std::int64_t k : {8, 9, 1'000'000}) {
    EXPECT_EQ(histogram(options(1, k), logits, 1000), histogram(options(1), logits, 1000)) << "all of them";
  }
}

TEST(SamplerTest, TopPKeepsTheFewestThatReachIt) {
  constexpr int draws = 20'000;
  std::vector<float> known;  // probabilities 0.1, 0.4, 0.2, 0.3
  for (const double p : {0.1, 0.4, 0.2, 0.3}) known.push_back(static_cast<float>(std::log(p)));
  const std::pair<double, std::vector<bool>> cases[] = {
      {0.39, {false, true, false, false}}, {0.41, {false, true, false, true}},
      {0.69, {false, true, false, true}},  {0.71, {false, true, true, true}},
      {0.91, {true, true, true, true}},    {1.0, {true, true, true, true}}};
  for (const auto& [top_p, kept] : cases) {
    EXPECT_LT(chi_squared(histogram(options(1, 0, top_p), known, draws), softmax(known, 1, kept), draws), 22)
        << top_p;
  }
  // top-k first, then the nucleus of what is left: of 0.4 / 0.9 and 0.3 / 0.9 and 0.2 / 0.9
  EXPECT_LT(chi_squared(histogram(options(1, 3, 0.75), known, draws),
                        softmax(known, 1, {false, true, false, true}), draws),
            22);
}

TEST(SamplerTest, SeedsRepeatAndDiffer) {
  const auto draw = [](std::uint64_t seed) {
    Sampler sampler(options(1, 0, 0.95, seed));
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 200; ++i) ids.push_back(sampler.next(logits));
    return ids;
  };
  for (const std::uint64_t seed :
       {std::uint64_t{0}, std::uint64_t{7}, std::numeric_limits<std::uint64_t>::max()}) {
    EXPECT_EQ(draw(seed), draw(seed));
    EXPECT_NE(draw(seed), draw(seed + 1));
  }
  // The 10000th draw of mt19937_64 is fixed by the C++ standard; these ids follow from its first ones.
  std::mt19937_64 engine(7);
  const std::vector<float> even(4, 0.0f);
  Sampler sampler(options(1, 0, 1, 7));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler.next(even), static_cast<std::int32_t>(engine() >> 62));
}

TEST(SamplerTest, NeverDrawsTheImpossible) {
  std::vector<float> masked(50, -infinity);
  masked[20] = 5;
  masked[30] = 5;
  const auto counts = histogram(options(10), masked, 2000);
  EXPECT_EQ(counts[20] + counts[30], 2000);
  EXPECT_GT(std::min(counts[20], counts[30]), 800);
}

TEST(SamplerTest, RefusesBadOptions) {
  for (const double t : {-0.1, -infinity * 1.0, infinity * 1.0, nan * 1.0}) {
    EXPECT_NE(error_of([&] { Sampler sampler(options(t)); }).find("temperature"), std::string::npos) << t;
  }
  EXPECT_NE(error_of([] { Sampler sampler(options(1, -1)); }).find("top-k: found -1"), std::string::npos);
  for (const double p : {0.0, -1.0, 1.0001, nan * 1.0}) {
    EXPECT_NE(error_of([&] { Sampler sampler(options(1, 0, p)); }).find("top-p"), std::string::npos) << p;
  }
}

TEST(SamplerTest, RefusesLogitsThatAreNotNumbers) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler(options(temperature));
    for (const std::vector<float>& bad : std::vector<std::vector<float>>{
             {}, {nan}, {1, nan, 2}, {nan, 1, 2}, {1, 2, nan}, {infinity, 1}, {-infinity, -infinity}}) {
      EXPECT_NE(error_of([&] { sampler.next(bad); }), "");
    }
    EXPECT_EQ(error_of([&] { sampler.next(std::vector<float>{1, -infinity}); }), "");
  }
}

}  // namespace
}  // namespace mla
