// Feed-forwards and mixtures of experts, backward: against central differences of slow forwards in double
// that are written here from the formulas. Forward with a tape: the forward without one, summed in another
// order.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "mla/train/feed_forward.h"
#include "support/gradients.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Random;
using test::Tensor;

struct FeedForward {
  FeedForward() = default;
  FeedForward(std::int64_t d, std::int64_t width, Random& random)
      : gate(width, d, random, 1 / std::sqrt(static_cast<double>(d))),
        up(width, d, random, 1 / std::sqrt(static_cast<double>(d))),
        down(d, width, random, 1 / std::sqrt(static_cast<double>(width))) {}

  TrainedFeedForward trained() { return {gate.trained(), up.trained(), down.trained()}; }
  std::array<Tensor*, 3> tensors() { return {&gate, &up, &down}; }

  /// y += weight * the feed-forward of row t of x.
  void add_to(const Tensor& x, std::int64_t t, double weight, double* y) const {
    for (std::int64_t w = 0; w < gate.rows; ++w) {
      double g = 0, u = 0;
      for (std::int64_t i = 0; i < x.cols; ++i) {
        g += gate.at(w, i) * x.at(t, i);
        u += up.at(w, i) * x.at(t, i);
      }
      for (std::int64_t i = 0; i < x.cols; ++i) y[i] += weight * down.at(i, w) * u * g / (1 + std::exp(-g));
    }
  }

  Tensor gate, up, down;
};

TEST(TrainFeedForwardTest, BackwardMatchesDifferences) {
  Random random(1);
  for (const auto& [tokens, d, width] :
       {std::array<std::int64_t, 3>{0, 4, 5}, {1, 3, 1}, {6, 5, 9}, {19, 4, 3}}) {
    FeedForward f(d, width, random);
    Tensor x(tokens, d, random), d_out(tokens, d, random), out(tokens, d, random);
    FeedForwardTape tape;
    FeedForwardBackwardScratch scratch;
    feed_forward_taped(f.trained(), x.view(), DType::f32, tape, out.view());
    feed_forward_backward(f.trained(), x.view(), d_out.view(), DType::f32, tape, scratch, x.gradient_view());
    const auto loss = [&] {
      std::vector<double> y(d_out.exact.size());
      for (std::int64_t t = 0; t < x.rows; ++t) f.add_to(x, t, 1.0, y.data() + t * x.cols);
      return test::inner(d_out.exact, y);
    };
    // Some ten roundings of 6e-8 along the way; the norms of the parts are of the size of the whole.
    x.expect_gradient(loss, 5e-6, "x");
    for (Tensor* w : f.tensors()) w->expect_gradient(loss, 5e-6, "weight");
  }
}

/// The same but for the order of sums, after which a value may round to the bf16 beside.
void expect_same(const Tensor& found, const Tensor& expected, DType compute) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < found.values.size(); ++i) {
    difference += std::pow(static_cast<double>(found.values[i]) - expected.values[i], 2);
    size += std::pow(static_cast<double>(expected.values[i]), 2);
  }
  EXPECT_LE(std::sqrt(difference / size), compute == DType::f32 ? 5e-7 : 5e-4) << name_of(compute);
}

TEST(TrainFeedForwardTest, IsTheForwardButForTheOrderOfSums) {
  Random random(2);
  for (const auto& [tokens, d, width] :
       {std::array<std::int64_t, 3>{1, 33, 70}, {100, 64, 190}, {3, 40, 300}}) {
    FeedForward f(d, width, random);
    Tensor x(tokens, d, random), out(tokens, d, random), expected(tokens, d, random);
    for (const DType compute : {DType::f32, DType::bf16}) {
      FeedForwardTape tape;
      FeedForwardScratch scratch;
      feed_forward_taped(f.trained(), x.view(), compute, tape, out.view());
      feed_forward(f.trained().weights(), x.view(), compute, scratch, expected.view());
      expect_same(out, expected, compute);
    }
  }
}

struct Mixture {
  Mixture(MoeConfig c, std::int64_t tokens, std::int64_t d, bool with_shared, Random& random)
      : config(c),
        gate(c.num_experts, d, random, 1 / std::sqrt(static_cast<double>(d))),
        bias(1, c.num_experts, random, 0.2),
        x(tokens, d, random),
        d_out(tokens, d, random),
        out(tokens, d, random) {
    for (std::int64_t e = 0; e < c.num_experts; ++e) experts.emplace_back(d, c.intermediate_size, random);
    if (with_shared) shared = FeedForward(d, 2 * c.intermediate_size, random);
  }

  TrainedMoe trained() {
    TrainedMoe t;
    t.gate = gate.trained();
    if (config.has_bias) t.bias = bias.trained();
    for (FeedForward& expert : experts) t.experts.push_back(expert.trained());
    if (shared.gate.rows > 0) t.shared = shared.trained();
    return t;
  }
  void forward(DType compute, std::span<std::int64_t> load = {}) {
    moe_taped(config, trained(), x.view(), compute, tape, out.view(), load);
    chosen = tape.forward.routing.experts;
  }
  void backward(DType compute) {
    moe_backward(config, trained(), x.view(), d_out.view(), compute, tape, scratch, x.gradient_view());
  }

  /// The loss whose gradient by `out` is d_out, with the experts that were chosen.
  double loss() const {
    std::vector<double> y(d_out.exact.size());
    const std::int64_t n = config.num_experts, k = config.experts_per_token;
    for (std::int64_t t = 0; t < x.rows; ++t) {
      std::vector<double> score(static_cast<std::size_t>(n));
      double all = 0, some = 0;
      for (std::int64_t e = 0; e < n; ++e) {
        double z = 0;
        for (std::int64_t i = 0; i < x.cols; ++i) z += gate.at(e, i) * x.at(t, i);
        score[e] = config.gate == GateKind::softmax ? std::exp(z) : 1 / (1 + std::exp(-z));
        all += score[e];
      }
      for (double& s : score) s /= config.gate == GateKind::softmax ? all : 1.0;
      for (std::int64_t i = t * k; i < (t + 1) * k; ++i) some += score[chosen[i]];
      for (std::int64_t i = t * k; i < (t + 1) * k; ++i)
        experts[chosen[i]].add_to(x, t, config.scale * score[chosen[i]] / (config.normalise ? some : 1.0),
                                  y.data() + t * x.cols);
      if (shared.gate.rows > 0) shared.add_to(x, t, 1.0, y.data() + t * x.cols);
    }
    return test::inner(d_out.exact, y);
  }
  bool is_chosen(std::size_t e) const {
    return std::find(chosen.begin(), chosen.end(), static_cast<std::int32_t>(e)) != chosen.end();
  }
  std::vector<float> gradients() {
    std::vector<float> all = x.gradient;
    const auto add = [&](const Tensor& t) { all.insert(all.end(), t.gradient.begin(), t.gradient.end()); };
    add(gate);
    for (FeedForward& expert : experts) {
      for (const Tensor* t : expert.tensors()) add(*t);
    }
    for (const Tensor* t : shared.tensors()) add(*t);
    return all;
  }

  MoeConfig config;
  Tensor gate, bias, x, d_out, out;
  std::vector<FeedForward> experts;
  FeedForward shared;
  MoeTape tape;
  FeedForwardBackwardScratch scratch;
  std::vector<std::int32_t> chosen;
};

MoeConfig config_of(std::int64_t experts, std::int64_t per_token, GateKind gate, bool normalise) {
  MoeConfig c;
  c.num_experts = experts;
  c.experts_per_token = per_token;
  c.intermediate_size = 3;
  c.gate = gate;
  c.normalise = normalise;
  c.scale = 1.7;
  return c;
}

void expect_gradients(Mixture& m, double tolerance, double gate_floor, const std::string& where) {
  const auto loss = [&] { return m.loss(); };
  m.x.expect_gradient(loss, tolerance, where + " x");
  m.gate.expect_gradient(loss, tolerance, where + " gate", gate_floor);
  for (std::size_t e = 0; e < m.experts.size(); ++e) {
    for (Tensor* w : m.experts[e].tensors())
      w->expect_gradient(loss, tolerance, fmt::format("{} {}", where, e));
  }
  for (Tensor* w : m.shared.tensors()) w->expect_gradient(loss, tolerance, where + " shared");
}

/// Both kinds of score, normalised or not, groups, bias, shared experts or none. Choices are held: a gradient
/// doesn't see them change. A gate's gradient may cancel, down to nothing with one expert of weight 1, where
/// roundings of what cancels remain: hence its floor.
TEST(TrainMoeTest, BackwardMatchesDifferences) {
  Random random(3);
  struct {
    std::int64_t tokens, experts, per_token, groups, kept;
  } const shapes[] = {{0, 4, 2, 1, 1}, {1, 4, 1, 1, 1}, {2, 6, 2, 3, 2}, {9, 8, 3, 4, 2}, {13, 5, 5, 1, 1}};
  for (const auto& s : shapes) {
    for (int bits = 0; bits < 16; ++bits) {
      MoeConfig c =
          config_of(s.experts, s.per_token, bits & 1 ? GateKind::softmax : GateKind::sigmoid, bits & 2);
      c.has_bias = bits & 4;
      if (s.groups > 1) {
        c.group_rank = bits & 1 ? GroupRank::best : GroupRank::best_two;
        c.num_groups = s.groups;
        c.groups_kept = s.kept;
      }
      Mixture m(c, s.tokens, 4, bits & 8, random);
      m.forward(DType::f32);
      m.backward(DType::f32);
      expect_gradients(m, 1e-5, 2e-6,
                       fmt::format("{} tokens, {} experts, case {}", s.tokens, s.experts, bits));
      for (const float g : m.bias.gradient) EXPECT_EQ(g, 0.0f) << "the bias has no gradient";
    }
  }
}

TEST(TrainMoeTest, GradientsAddUpAndExpertsNobodyChoseAreNotTouched) {
  Random random(4);
  Mixture m(config_of(9, 2, GateKind::softmax, true), 2, 5, true, random);
  m.forward(DType::f32);
  m.backward(DType::f32);
  const auto once = m.gradients();
  const auto d_x = m.x.gradient;
  std::size_t idle = 0;
  for (std::size_t e = 0; e < m.experts.size(); ++e) {
    if (m.is_chosen(e)) continue;
    ++idle;
    for (Tensor* w : m.experts[e].tensors()) w->gradient.assign(w->gradient.size(), -0.0f);
  }
  ASSERT_GT(idle, 3u);
  m.forward(DType::f32);
  m.backward(DType::f32);
  const auto twice = m.gradients();
  EXPECT_EQ(m.x.gradient, d_x) << "d_x is written";
  for (std::size_t i = d_x.size(); i < once.size(); ++i) EXPECT_NEAR(twice[i], 2 * once[i], 1e-5);
  for (std::size_t e = 0; e < m.experts.size(); ++e) {
    if (m.is_chosen(e)) continue;
    for (Tensor* w : m.experts[e].tensors()) {
      for (const float g : w->gradient) EXPECT_TRUE(g == 0.0f && std::signbit(g)) << "expert " << e;
    }
  }
}

/// Rounding both operands of three products in a row to 8 bits: 1.6e-3 each in the root mean square, and what
/// the errors of the experts' results make of the gate's gradient, which cancels.
TEST(TrainMoeTest, Bf16IsNear) {
  Random random(5);
  for (const GateKind gate : {GateKind::softmax, GateKind::sigmoid}) {
    MoeConfig c = config_of(6, 2, gate, true);
    c.intermediate_size = 8;
    Mixture m(c, 12, 7, true, random);
    m.forward(DType::bf16);
    m.backward(DType::bf16);
    expect_gradients(m, 2e-2, 1e-8, "bf16");
  }
}

TEST(TrainMoeTest, IsTheForwardButForTheOrderOfSumsAndLoadIsCounted) {
  Random random(6);
  for (const bool with_shared : {false, true}) {
    MoeConfig c = config_of(10, 3, GateKind::sigmoid, true);
    c.intermediate_size = 37;
    c.has_bias = with_shared;
    Mixture m(c, 90, 48, with_shared, random);
    for (const DType compute : {DType::f32, DType::bf16}) {
      std::vector<std::int64_t> load(10, 5);
      m.forward(compute, load);
      MoeScratch scratch;
      Tensor expected(90, 48, random);
      moe_forward(c, m.trained().weights(), m.x.view(), compute, scratch, expected.view());
      expect_same(m.out, expected, compute);
      for (std::int64_t e = 0; e < 10; ++e)
        EXPECT_EQ(load[e], 5 + std::count(m.chosen.begin(), m.chosen.end(), static_cast<std::int32_t>(e)));
    }
  }
  Mixture m(config_of(4, 2, GateKind::sigmoid, true), 3, 4, false, random);
  std::vector<std::int64_t> load(3);
  EXPECT_EQ(test::error_of([&] { m.forward(DType::f32, load); }),
            "mixture: found 3 loads, expected none or 4");
}

/// Ten experts: dealt out to one or two threads, shared by three.
TEST(TrainMoeTest, ThreadsDoNotChangeBits) {
  const test::Threads restored(1);
  for (const DType compute : {DType::f32, DType::bf16}) {
    std::vector<float> expected;
    for (const int count : {1, 2, 3}) {
      set_threads(count);
      Random random(7);
      MoeConfig c = config_of(10, 3, GateKind::softmax, true);
      c.intermediate_size = 40;
      Mixture m(c, 400, 50, true, random);
      m.forward(compute);
      m.backward(compute);
      if (count == 1) expected = m.gradients();
      EXPECT_TRUE(expected == m.gradients()) << count << " threads, " << name_of(compute);
    }
  }
}

TEST(TrainMoeTest, BiasMovesTowardsTheMeanLoad) {
  std::vector<float> values = {0.5f, 0.5f, 0.5f, 0.5f}, gradient(4);
  const Trained bias{{values.data(), 1, 4}, {gradient.data(), 1, 4}};
  move_bias(std::array<std::int64_t, 4>{0, 9, 4, 3}, 0.25, bias);  // mean 4
  EXPECT_EQ(values, (std::vector<float>{0.75f, 0.25f, 0.5f, 0.75f}));
  EXPECT_EQ(test::error_of([&] { move_bias(std::array<std::int64_t, 3>{}, 0.25, bias); }),
            "bias: found 3 loads, expected 4");
}

}  // namespace
}  // namespace mla
