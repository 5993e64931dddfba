// Parameters, and the layers backward: against central differences of slow forwards in double that are
// written here from the formulas.
#include "mla/train/layers.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <functional>

#include "support/gradients.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Random;
using test::Tensor;

TEST(ParametersTest, LieInOneArrayEachFromAMultipleOf16) {
  Parameters p({{"a.weight", {3, 5}}, {"norm", {16}}, {"b", {1, 17}}});
  EXPECT_EQ(p.specs().size(), 3u);
  EXPECT_EQ(p.values().size(), 16u + 16u + 32u);
  EXPECT_EQ(p.gradients().size(), p.values().size());
  const Trained a = p.at("a.weight"), norm = p.at(1), b = p.at("b");
  EXPECT_EQ(a.value.data, p.values().data());
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(a.value.data) % 64, 0u);
  EXPECT_EQ(a.value.rows, 3);
  EXPECT_EQ(a.value.cols, 5);
  EXPECT_EQ(a.value.stride, 5);
  EXPECT_EQ(norm.value.rows, 1);
  EXPECT_EQ(norm.vector().size(), 16u);
  EXPECT_EQ(norm.vector().data(), p.values().data() + 16);
  EXPECT_EQ(b.gradient.data, p.gradients().data() + 32);
  EXPECT_TRUE(p.has("b"));
  EXPECT_FALSE(p.has("c"));
  EXPECT_TRUE(Trained{}.empty());
  for (const float v : p.values()) EXPECT_EQ(v, 0.0f);
  a.gradient.data[3] = 1.0f;
  a.value.data[3] = 1.0f;
  p.clear_gradients();
  for (const float v : p.gradients()) EXPECT_EQ(v, 0.0f);
  EXPECT_EQ(a.value.data[3], 1.0f) << "values stay";
  EXPECT_EQ(Parameters({}).values().size(), 0u);
}

TEST(ParametersTest, Errors) {
  const auto error = [](std::vector<ParameterSpec> specs) {
    return test::error_of([&] { Parameters p(specs); });
  };
  EXPECT_EQ(error({{"x", {}}}), "parameter x: found 0 sizes, expected 1 or 2");
  EXPECT_EQ(error({{"x", {1, 2, 3}}}), "parameter x: found 3 sizes, expected 1 or 2");
  EXPECT_NE(error({{"x", {2, 0}}}), "");
  EXPECT_NE(error({{"x", {-1}}}), "");
  EXPECT_NE(error({{"x", {std::int64_t{1} << 40, std::int64_t{1} << 40}}}), "") << "the product overflows";
  EXPECT_EQ(error({{"x", {2}}, {"y", {2}}, {"x", {3}}}), "parameter x: found twice, expected each name once");
  Parameters p({{"x", {2}}});
  EXPECT_EQ(test::error_of([&] { p.at("y"); }), "parameter y: there is none of that name");
  EXPECT_EQ(test::error_of([&] { p.at(1); }), "parameter 1: expected an index below 1");
}

/// y = x W^T.
std::vector<double> plain_linear(const std::vector<double>& x, const std::vector<double>& w, std::int64_t t,
                                 std::int64_t i, std::int64_t o) {
  return test::plain_matmul(x, w, t, o, i);
}

TEST(TrainLayersTest, LinearBackward) {
  Random random(1);
  for (const auto& sizes : {std::array<std::int64_t, 3>{1, 3, 4}, {5, 8, 3}, {17, 6, 13}}) {
    const std::int64_t t = sizes[0], i = sizes[1], o = sizes[2];
    Tensor x(t, i, random), w(o, i, random), d_y(t, o, random);
    const auto loss = [&] { return test::inner(d_y.exact, plain_linear(x.exact, w.exact, t, i, o)); };
    linear_backward(x.view(), w.trained(), d_y.view(), DType::f32, x.gradient_view());
    x.expect_gradient(loss, 1e-5, "x");
    w.expect_gradient(loss, 1e-5, "W");
    const auto once = w.gradient;
    linear_backward(x.view(), w.trained(), d_y.view(), DType::f32, {});
    for (std::size_t k = 0; k < once.size(); ++k) EXPECT_FLOAT_EQ(w.gradient[k], 2 * once[k]) << "d_W adds";
    const auto written = x.gradient;
    linear_backward(x.view(), w.trained(), d_y.view(), DType::f32, x.gradient_view(), true);
    for (std::size_t k = 0; k < written.size(); ++k) EXPECT_FLOAT_EQ(x.gradient[k], 2 * written[k]) << "adds";
  }
}

TEST(TrainLayersTest, LinearBackwardInBf16) {
  Random random(2);
  const std::int64_t t = 40, i = 17, o = 20;
  Tensor x(t, i, random), w(o, i, random), d_y(t, o, random);
  linear_backward(x.view(), w.trained(), d_y.view(), DType::bf16, x.gradient_view());
  const auto loss = [&] { return test::inner(d_y.exact, plain_linear(x.exact, w.exact, t, i, o)); };
  // Two operands with 8 bits each: errors of up to 2^-9 of a factor, 1.1e-3 each in the root mean square.
  x.expect_gradient(loss, 4e-3, "x");
  w.expect_gradient(loss, 4e-3, "W");
}

std::vector<double> plain_norm(const Tensor& x, const Tensor& w, double epsilon) {
  std::vector<double> y;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (std::int64_t i = 0; i < x.cols; ++i) squares += std::pow(x.at(t, i), 2);
    const double r = 1 / std::sqrt(squares / static_cast<double>(x.cols) + epsilon);
    for (std::int64_t i = 0; i < x.cols; ++i) y.push_back(x.at(t, i) * r * w.at(0, i));
  }
  return y;
}

TEST(TrainLayersTest, RmsNormBackward) {
  Random random(3);
  for (const auto& [t, n] :
       {std::array<std::int64_t, 2>{0, 8}, {1, 1}, {1, 19}, {5, 16}, {70, 7}, {130, 3}}) {
    for (const double epsilon : {1e-6, 0.3}) {
      Tensor x(t, n, random), w(1, n, random), d_y(t, n, random);
      const auto loss = [&] { return test::inner(d_y.exact, plain_norm(x, w, epsilon)); };
      rms_norm_backward(x.view(), w.trained(), epsilon, d_y.view(), x.gradient_view());
      if (n > 1 || epsilon > 1e-3)  // of one value alone the norm is its sign, whose slope is only rounding
        x.expect_gradient(loss, 2e-5, "x");
      w.expect_gradient(loss, 1e-5, "weight");
      const auto d_x = x.gradient, d_w = w.gradient;
      rms_norm_backward(x.view(), w.trained(), epsilon, d_y.view(), x.gradient_view());
      for (std::size_t k = 0; k < d_x.size(); ++k) EXPECT_NEAR(x.gradient[k], 2 * d_x[k], 1e-6) << "d_x adds";
      for (std::size_t k = 0; k < d_w.size(); ++k)
        EXPECT_NEAR(w.gradient[k], 2 * d_w[k], 1e-4 * std::abs(d_w[k]) + 1e-4) << "d_weight adds";
    }
  }
}

TEST(TrainLayersTest, SwigluBackward) {
  Random random(4);
  Tensor gate(9, 21, random, 3), up(9, 21, random), d(9, 21, random);
  const auto loss = [&] {
    double sum = 0;
    for (std::size_t k = 0; k < d.exact.size(); ++k)
      sum += d.exact[k] * gate.exact[k] / (1 + std::exp(-gate.exact[k])) * up.exact[k];
    return sum;
  };
  swiglu_backward(gate.view(), up.view(), d.view(), gate.gradient_view(), up.gradient_view());
  gate.expect_gradient(loss, 1e-5, "gate");
  up.expect_gradient(loss, 1e-5, "up");
  const auto d_gate = gate.gradient;  // in place
  swiglu_backward(gate.view(), up.view(), d.view(), gate.view(), up.view());
  EXPECT_EQ(gate.values, d_gate);
  EXPECT_EQ(up.values, up.gradient);
}

TEST(TrainLayersTest, EmbeddingBackward) {
  Random random(5);
  const std::int64_t vocab = 11, d = 150;
  const std::vector<std::int32_t> ids = {3, 0, 3, 10, 3, 7, 0};
  Tensor embedding(vocab, d, random), d_stream(7, d, random);
  const double scale = 1.75;
  embedding_backward(ids, scale, d_stream.view(), embedding.trained());
  for (std::int64_t v = 0; v < vocab; ++v) {
    for (std::int64_t i = 0; i < d; ++i) {
      double expected = 0;
      for (std::size_t t = 0; t < ids.size(); ++t)
        expected += ids[t] == v ? scale * d_stream.at(static_cast<std::int64_t>(t), i) : 0.0;
      EXPECT_NEAR(embedding.gradient[v * d + i], expected, 2e-6) << v;
    }
  }
  const auto once = embedding.gradient;
  embedding_backward(ids, scale, d_stream.view(), embedding.trained());
  for (std::size_t k = 0; k < once.size(); ++k)
    EXPECT_NEAR(embedding.gradient[k], 2 * once[k], 4e-6) << "adds";
  const std::int32_t bad[] = {0, 11, 0, 0, 0, 0, 0};
  EXPECT_EQ(test::error_of([&] { embedding_backward(bad, 1, d_stream.view(), embedding.trained()); }),
            "embedding backward: found the id 11, expected 0 to 10");
}

double plain_cross_entropy(const Tensor& hidden, const Tensor& head, double scale,
                           const std::vector<std::int32_t>& targets) {
  double loss = 0;
  for (std::int64_t t = 0; t < hidden.rows; ++t) {
    if (targets[static_cast<std::size_t>(t)] < 0) continue;
    double sum = 0, score = 0;
    for (std::int64_t v = 0; v < head.rows; ++v) {
      double logit = 0;
      for (std::int64_t i = 0; i < head.cols; ++i) logit += scale * head.at(v, i) * hidden.at(t, i);
      sum += std::exp(logit);
      if (v == targets[static_cast<std::size_t>(t)]) score = logit;
    }
    loss += std::log(sum) - score;
  }
  return loss;
}

TEST(TrainLayersTest, CrossEntropy) {
  Random random(6);
  for (const auto& [tokens, d, vocab] :
       {std::array<std::int64_t, 3>{0, 4, 3}, {1, 4, 1}, {3, 5, 37}, {300, 3, 6}}) {
    for (const double scale : {1.0, 0.4}) {
      Tensor hidden(tokens, d, random), head(vocab, d, random);
      std::vector<std::int32_t> targets;
      for (std::int64_t t = 0; t < tokens; ++t)
        targets.push_back(t % 5 == 4 ? -1 : static_cast<std::int32_t>(random.below(vocab)));
      const double weight = 0.125;
      CrossEntropyScratch scratch;
      const double found = cross_entropy(hidden.view(), head.trained(), scale, targets, weight, DType::f32,
                                         scratch, hidden.gradient_view());
      const double expected = plain_cross_entropy(hidden, head, scale, targets);
      EXPECT_NEAR(found, expected, 1e-6 * (expected + 1)) << tokens;
      EXPECT_EQ(found,
                cross_entropy(hidden.view(), head.trained(), scale, targets, weight, DType::f32, scratch, {}))
          << "the loss alone is the same";
      const auto loss = [&] { return weight * plain_cross_entropy(hidden, head, scale, targets); };
      if (vocab == 1) {  // one answer only: no gradient
        for (const float g : hidden.gradient) EXPECT_EQ(g, 0.0f);
        continue;
      }
      hidden.expect_gradient(loss, 2e-5, "hidden");
      head.expect_gradient(loss, 2e-5, "head");
    }
  }
}

TEST(TrainLayersTest, CrossEntropyOfLargeLogitsAndBadTargets) {
  std::vector<float> hidden = {1.0f}, weights = {1e4f, -1e4f, 9e3f}, gradient(3), d_hidden(1);
  const Trained head{{weights.data(), 3, 1}, {gradient.data(), 3, 1}};
  CrossEntropyScratch scratch;
  const auto loss = [&](std::int32_t target) {
    const std::int32_t targets[] = {target};
    return cross_entropy({hidden.data(), 1, 1}, head, 1.0, targets, 1.0, DType::f32, scratch,
                         {d_hidden.data(), 1, 1});
  };
  EXPECT_EQ(loss(0), 0.0);
  EXPECT_EQ(loss(1), 2e4);
  EXPECT_EQ(loss(2), 1e3);
  EXPECT_EQ(gradient, (std::vector<float>{2.0f, -1.0f, -1.0f}));
  EXPECT_EQ(loss(-1), 0.0);
  EXPECT_EQ(d_hidden[0], 0.0f) << "a token that is left out has no gradient, and it is written";
  EXPECT_EQ(test::error_of([&] { loss(3); }), "cross entropy: found the target 3, expected -1 to 2");
  EXPECT_EQ(test::error_of([&] { loss(-2); }), "cross entropy: found the target -2, expected -1 to 2");
}

/// Everything once at a size that is worth threads; the bits as one list.
std::vector<float> all_gradients(DType compute) {
  Random random(7);
  const std::int64_t tokens = 700, d = 130, vocab = 90;
  Tensor x(tokens, d, random), w(1, d, random), head(vocab, d, random), embedding(vocab, d, random);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < tokens; ++t) ids.push_back(static_cast<std::int32_t>(random.below(vocab)));
  Tensor d_x(tokens, d, random), d_up(tokens, d, random);
  CrossEntropyScratch scratch;
  std::vector<float> all;
  all.push_back(static_cast<float>(
      cross_entropy(x.view(), head.trained(), 1.0, ids, 1.0, compute, scratch, x.gradient_view())));
  rms_norm_backward(x.view(), w.trained(), 1e-6, x.gradient_view(), d_x.view());
  swiglu_backward(x.view(), d_x.view(), x.gradient_view(), d_up.view(), d_x.view());
  embedding_backward(ids, 1.5, d_x.view(), embedding.trained());
  for (const auto* part :
       {&x.gradient, &w.gradient, &head.gradient, &embedding.gradient, &d_x.values, &d_up.values})
    all.insert(all.end(), part->begin(), part->end());
  return all;
}

TEST(TrainLayersTest, ThreadsDoNotChangeBits) {
  const test::Threads restored(1);
  for (const DType compute : {DType::f32, DType::bf16}) {
    set_threads(1);
    const auto expected = all_gradients(compute);
    for (const int count : {2, 3}) {
      set_threads(count);
      EXPECT_TRUE(expected == all_gradients(compute)) << count << " threads, " << name_of(compute);
    }
  }
}

}  // namespace
}  // namespace mla
