// The mixture of experts: routing against a search by brute force in double, the sum against its definition.
#include "mla/model/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "support/oracle.h"

namespace mla {
namespace {

using test::Random;

MoeConfig config(std::int64_t experts, std::int64_t per_token, GateKind gate,
                 GroupRank rank = GroupRank::none, std::int64_t groups = 1, std::int64_t kept = 1) {
  MoeConfig c;
  c.num_experts = experts;
  c.experts_per_token = per_token;
  c.gate = gate;
  c.group_rank = rank;
  c.num_groups = groups;
  c.groups_kept = kept;
  return c;
}

/// Indices of the `count` largest among `allowed`, one by one; the first wins among equals.
std::vector<std::size_t> largest(const std::vector<double>& values, std::int64_t count,
                                 std::vector<bool> allowed) {
  std::vector<std::size_t> found;
  while (static_cast<std::int64_t>(found.size()) < count) {
    std::size_t best = values.size();
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (allowed[i] && (best == values.size() || values[i] > values[best])) best = i;
    }
    allowed[best] = false;
    found.push_back(best);
  }
  return found;
}

/// Expert > weight of one token.
std::map<std::int32_t, double> plain_route(const MoeConfig& c, const std::vector<float>& bias,
                                           const float* logits) {
  const auto n = static_cast<std::size_t>(c.num_experts);
  std::vector<double> score(n), choice(n);
  double total = 0;
  for (std::size_t e = 0; e < n; ++e) total += std::exp(static_cast<double>(logits[e]));
  for (std::size_t e = 0; e < n; ++e) {
    const double z = logits[e];
    score[e] = c.gate == GateKind::softmax ? std::exp(z) / total : 1 / (1 + std::exp(-z));
    choice[e] = score[e] + (bias.empty() ? 0.0 : static_cast<double>(bias[e]));
  }
  std::vector<bool> allowed(n, true);
  if (c.group_rank != GroupRank::none) {
    const std::size_t size = n / static_cast<std::size_t>(c.num_groups);
    std::vector<double> rank;
    for (std::size_t g = 0; g < n / size; ++g) {
      std::vector<double> members(choice.begin() + static_cast<std::ptrdiff_t>(g * size),
                                  choice.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
      std::sort(members.rbegin(), members.rend());
      rank.push_back(c.group_rank == GroupRank::best ? members[0] : members[0] + members[1]);
    }
    const auto kept = largest(rank, c.groups_kept, std::vector<bool>(rank.size(), true));
    for (std::size_t e = 0; e < n; ++e)
      allowed[e] = std::find(kept.begin(), kept.end(), e / size) != kept.end();
  }
  const auto chosen = largest(choice, c.experts_per_token, allowed);
  double sum = 0;
  for (const std::size_t e : chosen) sum += score[e];
  std::map<std::int32_t, double> result;
  for (const std::size_t e : chosen)
    result[static_cast<std::int32_t>(e)] = score[e] / (c.normalise ? sum : 1.0) * c.scale;
  return result;
}

/// Checks experts in ascending order and their weights, to f32's last places.
void expect_routes(const MoeConfig& c, const std::vector<float>& bias, const std::vector<float>& logits,
                   const std::string& where) {
  const auto tokens = static_cast<std::int64_t>(logits.size()) / c.num_experts;
  Routing routing;
  route(c, bias, {logits.data(), tokens, c.num_experts}, routing);
  ASSERT_EQ(static_cast<std::int64_t>(routing.experts.size()), tokens * c.experts_per_token) << where;
  ASSERT_EQ(routing.weights.size(), routing.experts.size()) << where;
  std::size_t i = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (const auto& [expert, weight] : plain_route(c, bias, logits.data() + t * c.num_experts)) {
      ASSERT_EQ(routing.experts[i], expert) << where << " token " << t;
      ASSERT_NEAR(routing.weights[i], weight, 1e-6 * weight) << where << " token " << t;
      ++i;
    }
  }
}

TEST(RouteTest, MatchesBruteForce) {
  Random random(1);
  struct {
    std::int64_t experts, per_token, groups, kept;
  } const shapes[] = {{4, 1, 1, 1},   {8, 2, 2, 1}, {16, 3, 4, 2}, {64, 6, 8, 3},
                      {256, 8, 8, 4}, {6, 6, 3, 3}, {7, 7, 1, 1}};
  for (const auto& s : shapes) {
    for (const GateKind gate : {GateKind::softmax, GateKind::sigmoid}) {
      for (const GroupRank rank : {GroupRank::none, GroupRank::best, GroupRank::best_two}) {
        for (int bits = 0; bits < 8; ++bits) {
          MoeConfig c = config(s.experts, s.per_token, gate, rank, s.groups, s.kept);
          c.normalise = bits & 1;
          c.scale = bits & 2 ? 2.5 : 1.0;
          const auto bias = bits & 4 ? random.values(s.experts, 0.3) : std::vector<float>{};
          expect_routes(c, bias, random.values(40 * s.experts, 1.5),
                        fmt::format("{} experts, case {}", s.experts, bits));
        }
      }
    }
  }
}

TEST(RouteTest, LowerIndexWinsAmongEquals) {
  Random random(2);
  for (const GateKind gate : {GateKind::softmax, GateKind::sigmoid}) {
    for (const GroupRank rank : {GroupRank::none, GroupRank::best, GroupRank::best_two}) {
      const MoeConfig c = config(16, 3, gate, rank, 4, 2);
      Routing routing;
      const std::vector<float> equal(16, 0.25f);
      route(c, {}, {equal.data(), 1, 16}, routing);
      EXPECT_EQ(routing.experts, (std::vector<std::int32_t>{0, 1, 2}));
      for (int i = 0; i < 200; ++i) {  // few values, so that experts and groups tie all the time
        std::vector<float> logits(16);
        for (float& z : logits) z = static_cast<float>(random.below(3));
        expect_routes(c, {}, logits, "ties");
      }
    }
  }
}

/// A bias lifts an expert into the choice without touching its weight, and can sink the best one.
TEST(RouteTest, BiasChoosesAndScoreWeighs) {
  const MoeConfig c = config(4, 2, GateKind::sigmoid);
  const float logits[] = {2, 1, 0, -1};
  Routing routing;
  route(c, {-5, 0, 0, 5}, {logits, 1, 4}, routing);
  EXPECT_EQ(routing.experts, (std::vector<std::int32_t>{1, 3}));
  EXPECT_NEAR(routing.weights[0], 1 / (1 + std::exp(-1.0)), 1e-6);
  EXPECT_NEAR(routing.weights[1], 1 / (1 + std::exp(1.0)), 1e-6);
}

TEST(RouteTest, ExtremeLogitsStayFinite) {
  for (const GateKind gate : {GateKind::softmax, GateKind::sigmoid}) {
    MoeConfig c = config(4, 2, gate);
    c.normalise = true;
    for (const float size : {90.0f, 1e4f, 3e38f}) {
      const float logits[] = {-size, size, -size, -size};
      Routing routing;
      route(c, {}, {logits, 1, 4}, routing);
      EXPECT_EQ(routing.experts, (std::vector<std::int32_t>{0, 1}));
      EXPECT_NEAR(routing.weights[1], 1, 1e-6);
      EXPECT_NEAR(routing.weights[0], 0, 1e-6);
    }
  }
}

/// Experts of random weights, and their owner.
struct Mixture {
  Mixture(MoeConfig c, std::int64_t d_, bool with_shared, Random& random) : moe(c), d(d_) {
    moe.intermediate_size = 7;
    const auto matrix = [&](std::int64_t rows, std::int64_t cols) {
      memory.push_back(random.values(rows * cols, 1 / std::sqrt(static_cast<double>(cols))));
      return as_weight({memory.back().data(), rows, cols});
    };
    const auto expert = [&](std::int64_t width) {
      return FeedForwardWeights{matrix(width, d), matrix(width, d), matrix(d, width)};
    };
    weights.gate = matrix(c.num_experts, d);
    for (std::int64_t e = 0; e < c.num_experts; ++e) weights.experts.push_back(expert(7));
    if (with_shared) weights.shared = expert(14);
  }

  std::vector<double> times(const Weight& w, const std::vector<double>& x) const {
    std::vector<double> values(static_cast<std::size_t>(w.rows * w.cols));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = reinterpret_cast<const float*>(w.data)[i];
    return test::plain_matmul(x, values, 1, w.rows, w.cols);
  }
  std::vector<double> run(const FeedForwardWeights& f, const std::vector<double>& x) const {
    auto gate = times(f.gate_proj, x);
    const auto up = times(f.up_proj, x);
    for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
    return times(f.down_proj, gate);
  }
  /// Every expert computed, those not chosen weighing nothing.
  std::vector<double> dense(const float* token) const {
    const std::vector<double> x(token, token + d);
    const auto scores = times(weights.gate, x);
    const std::vector<float> logits(scores.begin(), scores.end());
    std::vector<double> out(x.size());
    const auto routed = plain_route(moe, weights.bias, logits.data());
    for (std::int64_t e = 0; e < moe.num_experts; ++e) {
      const auto at = routed.find(static_cast<std::int32_t>(e));
      const auto y = run(weights.experts[static_cast<std::size_t>(e)], x);
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += at == routed.end() ? 0 : at->second * y[i];
    }
    if (!weights.shared.gate_proj.empty()) {
      const auto y = run(weights.shared, x);
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += y[i];
    }
    return out;
  }

  MoeConfig moe;
  std::int64_t d;
  std::vector<std::vector<float>> memory;  // moves of the outer vector leave the inner ones' memory in place
  MoeWeights weights;
};

TEST(MoeTest, IsTheWeightedSumOfItsExperts) {
  Random random(3);
  for (const bool with_shared : {false, true}) {
    for (const bool has_bias : {false, true}) {
      MoeConfig c =
          config(12, 3, has_bias ? GateKind::sigmoid : GateKind::softmax, GroupRank::best_two, 3, 2);
      c.normalise = has_bias;
      c.scale = 1.7;
      Mixture mixture(c, 11, with_shared, random);
      if (has_bias) mixture.weights.bias = random.values(12, 0.2);
      MoeScratch scratch;
      for (const std::int64_t tokens : {1, 50, 2}) {  // the scratch shrinks and is used again
        const auto x = random.values(tokens * 11);
        std::vector<float> out(x.size(), 99.0f);
        moe_forward(mixture.moe, mixture.weights, {x.data(), tokens, 11}, DType::f32, scratch,
                    {out.data(), tokens, 11});
        for (std::int64_t t = 0; t < tokens; ++t) {
          const auto expected = mixture.dense(x.data() + t * 11);
          for (std::int64_t i = 0; i < 11; ++i) EXPECT_NEAR(out[t * 11 + i], expected[i], 3e-6) << t;
        }
      }
    }
  }
}

TEST(MoeTest, BitsDoNotDependOnCompanyOrThreads) {
  Random random(4);
  Mixture mixture(config(16, 4, GateKind::sigmoid), 33, true, random);
  const std::int64_t tokens = 40, d = 33;
  const auto x = random.values(tokens * d);
  const test::Threads restored(1);
  for (const DType compute : {DType::f32, DType::bf16}) {
    MoeScratch scratch;
    std::vector<float> expected(x.size());
    set_threads(1);
    moe_forward(mixture.moe, mixture.weights, {x.data(), tokens, d}, compute, scratch,
                {expected.data(), tokens, d});
    for (const int count : {1, 3}) {
      set_threads(count);
      for (const std::int64_t chunk : {1, 7, 40}) {
        std::vector<float> found(x.size());
        for (std::int64_t t = 0; t < tokens; t += chunk) {
          const std::int64_t some = std::min(chunk, tokens - t);
          moe_forward(mixture.moe, mixture.weights, {x.data() + t * d, some, d}, compute, scratch,
                      {found.data() + t * d, some, d});
        }
        EXPECT_EQ(expected, found) << name_of(compute) << " chunk " << chunk << " threads " << count;
      }
    }
  }
}

/// The gate computes in f32 whatever the experts do: in bf16 compute the same experts are chosen.
TEST(MoeTest, GateIgnoresTheComputeType) {
  Random random(5);
  Mixture mixture(config(16, 4, GateKind::softmax), 64, false, random);
  const auto x = random.values(200 * 64);
  std::vector<float> out(x.size());
  MoeScratch in_f32, in_bf16;
  moe_forward(mixture.moe, mixture.weights, {x.data(), 200, 64}, DType::f32, in_f32, {out.data(), 200, 64});
  moe_forward(mixture.moe, mixture.weights, {x.data(), 200, 64}, DType::bf16, in_bf16, {out.data(), 200, 64});
  EXPECT_EQ(in_f32.routing.experts, in_bf16.routing.experts);
  EXPECT_EQ(in_f32.routing.weights, in_bf16.routing.weights);
}

}  // namespace
}  // namespace mla
