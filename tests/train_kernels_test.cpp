// The kernels that training adds: leaf kernels backward and panels of every instruction set against
// double-precision loops, and the products made of panels. Arrays end at an unreadable page.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "mla/kernels/leaf.h"
#include "mla/kernels/matmul_backward.h"
#include "support/edge.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Edge;
using test::Random;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

std::vector<std::int64_t> lengths() {
  std::vector<std::int64_t> all;
  for (std::int64_t n = 0; n <= 35; ++n) all.push_back(n);
  for (const std::int64_t n : {47, 63, 64, 65, 257, 1001}) all.push_back(n);
  return all;
}

class TrainLeafTest : public testing::TestWithParam<Isa> {
 protected:
  const LeafKernels& leaf = leaf_kernels(GetParam());
  Random random{1};
};

/// The closed form in double. The sum over the row carries an error like 6e-8 sqrt(n) of its terms' size.
TEST_P(TrainLeafTest, RmsNormBackward) {
  for (const std::int64_t n : lengths()) {
    for (const float epsilon : {1e-6f, 0.5f}) {
      const auto d_x_before = random.values(n), d_weight_before = random.values(n);
      Edge<float> x(random.values(n)), weight(random.values(n)), d(random.values(n)), d_x(d_x_before),
          d_weight(d_weight_before);
      leaf.rms_norm_backward(x.data(), weight.data(), epsilon, d.data(), d_x.data(), d_weight.data(), n);
      double squares = 0, sum = 0, size = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        squares += static_cast<double>(x[i]) * x[i];
        sum += static_cast<double>(x[i]) * weight[i] * d[i];
        size += std::abs(static_cast<double>(x[i]) * weight[i] * d[i]);
      }
      const auto count = static_cast<double>(n);
      const double r = 1 / std::sqrt(squares / count + epsilon);
      for (std::int64_t i = 0; i < n; ++i) {
        const double pull = x[i] * r * r * r / count;
        const double expected = d_x_before[i] + r * weight[i] * d[i] - pull * sum;
        const double allowed =
            5e-7 * (1 + std::abs(d_x_before[i]) + r * std::abs(weight[i] * d[i]) + std::abs(pull) * size);
        EXPECT_NEAR(d_x[i], expected, allowed) << n;
        const double expected_weight = d_weight_before[i] + x[i] * r * d[i];
        EXPECT_NEAR(d_weight[i], expected_weight, 5e-7 * (1 + std::abs(x[i] * r * d[i]))) << n;
      }
    }
  }
}

TEST_P(TrainLeafTest, SwigluBackward) {
  const auto expect = [&](const std::vector<float>& gates) {
    const auto n = static_cast<std::int64_t>(gates.size());
    Edge<float> gate(gates), up(random.values(n)), d(random.values(n)), d_gate(n), d_up(n);
    leaf.swiglu_backward(gate.data(), up.data(), d.data(), d_gate.data(), d_up.data(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      const double g = gates[i], s = 1 / (1 + std::exp(-g)), slope = s + g * s * (1 - s);
      // The slope passes zero at a gate of -1.28, where s and g s (1 - s) cancel: its error is theirs.
      EXPECT_NEAR(d_gate[i], d[i] * up[i] * slope,
                  1e-6 * std::abs(d[i] * up[i]) * s * (1 + std::abs(g)) + 1e-35)
          << g;
      EXPECT_NEAR(d_up[i], d[i] * g * s, 1e-6 * std::abs(d[i] * g * s) + 1e-35) << g;
    }
    leaf.swiglu_backward(gate.data(), up.data(), d.data(), gate.data(), up.data(), n);
    for (std::int64_t i = 0; i < n; ++i) {
      EXPECT_EQ(gate[i], d_gate[i]) << "d_gate may be gate";
      EXPECT_EQ(up[i], d_up[i]) << "d_up may be up";
    }
  };
  for (const std::int64_t n : lengths()) expect(random.values(n, 4));
  expect(
      {-1e30f, -1e5f, -104.f, -89.f, -88.8f, -88.f, -87.f, -17.f, -1.2784645f, -0.f, 0.f, 17.f, 88.f, 89.f});
}

TEST_P(TrainLeafTest, ExpSumAndSoftmax) {
  for (const std::int64_t n : lengths()) {
    if (n == 0) continue;
    for (const float scale : {1.0f, 0.25f, 30.0f}) {
      Edge<float> x(random.values(n, 3)), out(n);
      double top = -1e300, sum = 0;
      for (std::int64_t i = 0; i < n; ++i) top = std::max(top, static_cast<double>(scale) * x[i]);
      for (std::int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(scale) * x[i] - top);
      const ExpSum found = leaf.exp_sum(x.data(), scale, n);
      // top is rounded to f32 and so moves the sum; together they are right.
      EXPECT_NEAR(found.top, top, 1e-7 * std::abs(top)) << n;
      EXPECT_NEAR(found.top + std::log(found.sum), top + std::log(sum), 2e-6 + 1e-7 * std::abs(top)) << n;
      leaf.softmax(x.data(), scale, found, -0.7f, out.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        // What is in the exponent is rounded: its size times 6e-8.
        const double expected = -0.7f * std::exp(static_cast<double>(scale) * x[i] - top) / sum;
        EXPECT_NEAR(out[i], expected, std::abs(expected) * (2e-6 + 3e-7 * std::abs(top)) + 1e-37) << n;
      }
      leaf.softmax(x.data(), scale, found, -0.7f, x.data(), n);
      for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(x[i], out[i]) << "out may be x";
    }
  }
  const float huge[] = {-3e38f, 1e4f, 3e38f, 2e38f, 0.0f};  // nothing overflows
  const ExpSum sum = leaf.exp_sum(huge, 1.0f, 5);
  EXPECT_EQ(sum.top, 3e38f);
  EXPECT_EQ(sum.sum, 1.0f);
}

/// Packs and multiplies one tile. Values of bf16 are exact, so that both kinds of units hold them.
void check_panels(const PanelKernels& kernels, Random& random) {
  for (const std::int64_t depth : {1, 2, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 300}) {
    for (std::int64_t turn = 0; turn < 8; ++turn) {
      const std::int64_t rows = turn == 0 ? kernels.rows : 1 + random.below(kernels.rows);
      const std::int64_t cols = turn == 0 ? kernels.cols : 1 + random.below(kernels.cols);
      const auto exact = [&](std::int64_t n) {
        auto values = random.values(n);
        for (float& v : values) v = to_float(to_bf16(v));
        return values;
      };
      const bool is_transposed = turn % 2 == 1;
      const std::int64_t a_stride = (is_transposed ? depth : rows) + 3, b_stride = cols + 1;
      Edge<float> a(exact(is_transposed ? (rows - 1) * a_stride + depth : (depth - 1) * a_stride + rows));
      Edge<float> b(exact((depth - 1) * b_stride + cols));
      const std::int64_t units = (depth + kernels.values - 1) / kernels.values;
      Edge<PanelUnit> a_packed(units * kernels.rows), b_packed(units * kernels.cols);
      (is_transposed ? kernels.pack_rows_transposed : kernels.pack_rows)({a.data(), a_stride, depth, rows},
                                                                         a_packed.data());
      kernels.pack_cols({b.data(), b_stride, depth, cols}, b_packed.data());
      for (const bool adds : {false, true}) {
        const std::int64_t stride = cols + 2;
        std::vector<float> before((rows - 1) * stride + cols, nan);
        for (std::int64_t i = 0; i < rows; ++i)
          std::fill_n(before.begin() + i * stride, cols, adds ? 2.0f : nan);
        Edge<float> c(before);
        kernels.multiply({a_packed.data(), b_packed.data(), units, rows, cols, adds, c.data(), stride});
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t j = 0; j < stride && i * stride + j < c.size(); ++j) {
            if (j >= cols) {
              ASSERT_TRUE(std::isnan(c[i * stride + j])) << "written beside the tile";
              continue;
            }
            double sum = adds ? 2 : 0, size = 2;
            for (std::int64_t k = 0; k < depth; ++k) {
              const double product =
                  static_cast<double>(a[is_transposed ? i * a_stride + k : k * a_stride + i]) *
                  b[k * b_stride + j];
              sum += product;
              size += std::abs(product);
            }
            ASSERT_NEAR(c[i * stride + j], sum, 2e-7 * (2 + std::sqrt(static_cast<double>(depth))) * size)
                << "depth " << depth << " rows " << rows << " cols " << cols << " at " << i << ", " << j;
          }
        }
      }
    }
  }
}

TEST_P(TrainLeafTest, Panels) {
  check_panels(panel_kernels(GetParam()), random);
  if (GetParam() == Isa::avx512_bf16) check_panels(avx512_bf16_panels, random);
}

INSTANTIATE_TEST_SUITE_P(Isas, TrainLeafTest, testing::ValuesIn(test::supported_isas()),
                         [](const auto& isa) { return std::string(name_of(isa.param)); });

/// One layer's operands, strided, with NaN between rows.
struct Layer {
  Layer(std::int64_t t, std::int64_t i, std::int64_t o, Random& random)
      : x(strided(t, i, i + 5, random)), w(strided(o, i, i, random)), d_y(strided(t, o, o + 1, random)) {}

  struct Matrix {
    std::vector<float> memory;
    std::int64_t rows, cols, stride;
    MatrixView<float> view() { return {memory.data(), rows, cols, stride}; }
    double at(std::int64_t r, std::int64_t c, DType type) const {
      return test::rounded(memory[static_cast<std::size_t>(r * stride + c)], type);
    }
  };
  static Matrix strided(std::int64_t rows, std::int64_t cols, std::int64_t stride, Random& random) {
    Matrix m{std::vector<float>(static_cast<std::size_t>(rows * stride), nan), rows, cols, stride};
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto values = random.values(cols);
      std::copy(values.begin(), values.end(), m.memory.begin() + r * stride);
    }
    return m;
  }

  Matrix x, w, d_y;
};

struct Gradients {
  std::vector<float> d_x, d_weight;
  bool operator==(const Gradients&) const = default;
};

/// d_x added to 1 if `adds`, d_weight added to 1.
Gradients run(Layer& layer, DType compute, bool adds) {
  const std::int64_t tokens = layer.x.rows, inputs = layer.x.cols, outputs = layer.w.rows;
  Gradients g{std::vector<float>(static_cast<std::size_t>(tokens * inputs), adds ? 1.0f : nan),
              std::vector<float>(static_cast<std::size_t>(outputs * inputs), 1.0f)};
  Buffer<PanelUnit> packed;
  matmul_backward_input(layer.d_y.view(), layer.w.view(), compute, adds, packed,
                        {g.d_x.data(), tokens, inputs});
  matmul_backward_weight(layer.d_y.view(), layer.x.view(), compute, packed,
                         {g.d_weight.data(), outputs, inputs});
  return g;
}

/// Operands rounded to the type first, the rest in double: what is left is f32's error of a sum.
TEST(MatmulBackwardTest, IsTheTwoProductsOfRoundedOperands) {
  Random random(2);
  const std::int64_t shapes[][3] = {{1, 1, 1},    {1, 40, 7},  {2, 3, 70},    {13, 33, 12}, {24, 64, 48},
                                    {50, 31, 65}, {7, 5, 530}, {600, 17, 11}, {1100, 3, 2}, {129, 100, 61}};
  for (const auto& [tokens, inputs, outputs] : shapes) {
    Layer layer(tokens, inputs, outputs, random);
    for (const DType type : {DType::f32, DType::bf16}) {
      for (const bool adds : {false, true}) {
        const Gradients found = run(layer, type, adds);
        const auto near = [&](float value, double expected, double size, std::int64_t depth) {
          return std::abs(value - expected) <=
                 2e-7 * (2 + std::sqrt(static_cast<double>(depth))) * (size + 1);
        };
        for (std::int64_t i = 0; i < inputs; ++i) {
          for (std::int64_t t = 0; t < tokens; ++t) {
            double sum = adds, size = 0;
            for (std::int64_t o = 0; o < outputs; ++o) {
              const double product = layer.d_y.at(t, o, type) * layer.w.at(o, i, type);
              sum += product;
              size += std::abs(product);
            }
            ASSERT_TRUE(near(found.d_x[t * inputs + i], sum, size, outputs)) << t << ' ' << i;
          }
          for (std::int64_t o = 0; o < outputs; ++o) {
            double sum = 1, size = 0;
            for (std::int64_t t = 0; t < tokens; ++t) {
              const double product = layer.d_y.at(t, o, type) * layer.x.at(t, i, type);
              sum += product;
              size += std::abs(product);
            }
            ASSERT_TRUE(near(found.d_weight[o * inputs + i], sum, size, tokens)) << o << ' ' << i;
          }
        }
      }
    }
  }
}

TEST(MatmulBackwardTest, NoTokensAndNoOutputs) {
  Random random(3);
  Layer none(0, 5, 4, random);
  EXPECT_EQ(run(none, DType::f32, false).d_weight, std::vector<float>(20, 1.0f));
  Layer narrow(3, 5, 0, random);
  EXPECT_EQ(run(narrow, DType::bf16, false).d_x, std::vector<float>(15, 0.0f));
  EXPECT_EQ(run(narrow, DType::bf16, true).d_x, std::vector<float>(15, 1.0f));
}

TEST(MatmulBackwardTest, ThreadsDoNotChangeBits) {
  Random random(4);
  const test::Threads restored(1);
  for (const auto& [tokens, inputs, outputs] : {std::array<std::int64_t, 3>{530, 100, 90}, {1100, 40, 300}}) {
    Layer layer(tokens, inputs, outputs, random);
    for (const DType type : {DType::f32, DType::bf16}) {
      set_threads(1);
      const Gradients expected = run(layer, type, true);
      for (const int count : {2, 3}) {
        set_threads(count);
        EXPECT_TRUE(expected == run(layer, type, true)) << count << " threads, " << name_of(type);
      }
    }
  }
}

TEST(MatmulBackwardTest, RefusesShapesThatDoNotFit) {
  float memory[64] = {};
  Buffer<PanelUnit> packed;
  EXPECT_EQ(
      test::error_of([&] {
        matmul_backward_input({memory, 2, 3}, {memory, 4, 5}, DType::f32, false, packed, {memory, 2, 5});
      }),
      "matmul backward: d_y [2, 3], W [4, 5], d_x [2, 5] do not fit");
  EXPECT_EQ(test::error_of([&] {
              matmul_backward_weight({memory, 2, 3}, {memory, 3, 5}, DType::f32, packed, {memory, 3, 5});
            }),
            "matmul backward: d_y [2, 3], x [3, 5], d_W [3, 5] do not fit");
}

}  // namespace
}  // namespace mla
