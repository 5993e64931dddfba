// The kernels that training adds: leaf kernels backward and panels of every instruction set against
// double-precision loops, and the products made of panels. Arrays end at an unreadable page.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "mla/kernels/leaf.h"
#include "mla/kernels/panel_matmul.h"
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

/// Values of bf16, so that both kinds of units hold them.
std::vector<float> exact_values(std::int64_t n, Random& random) {
  auto values = random.values(n);
  for (float& v : values) v = to_float(to_bf16(v));
  return values;
}

/// An operand of a product, as it is stored and packed. `side` may take several panels.
struct PackedOperand {
  std::int64_t side, depth, panel, units, stride;
  bool is_transposed;
  Edge<float> x;
  Edge<PanelUnit> packed;

  PackedOperand(std::int64_t side_, std::int64_t depth_, std::int64_t panel_, std::int64_t values,
                bool is_transposed_, void (*pack)(const PanelSource&, PanelUnit*), Random& random)
      : side(side_),
        depth(depth_),
        panel(panel_),
        units((depth + values - 1) / values),
        stride((is_transposed_ ? depth : side) + 3),
        is_transposed(is_transposed_),
        x(exact_values(is_transposed ? (side - 1) * stride + depth : (depth - 1) * stride + side, random)),
        packed((side + panel - 1) / panel * units * panel) {
    pack({x.data(), stride, depth, side, units * panel}, packed.data());
  }
  std::int64_t panels() const { return (side + panel - 1) / panel; }
  double at(std::int64_t i, std::int64_t k) { return x[is_transposed ? i * stride + k : k * stride + i]; }
  /// Of panel `p`.
  std::int64_t width(std::int64_t p) const { return std::min(panel, side - p * panel); }
};

/// One tile: panel i of a with panel j of b.
void check_tile(const PanelKernels& kernels, PackedOperand& a, PackedOperand& b, std::int64_t i,
                std::int64_t j, bool adds) {
  const std::int64_t rows = a.width(i), cols = b.width(j), stride = cols + 2;
  std::vector<float> before((rows - 1) * stride + cols, nan);
  for (std::int64_t r = 0; r < rows; ++r) std::fill_n(before.begin() + r * stride, cols, adds ? 2.0f : nan);
  Edge<float> c(before);
  kernels.multiply({a.packed.data() + i * a.units * a.panel, b.packed.data() + j * b.units * b.panel, a.units,
                    rows, cols, adds, c.data(), stride});
  for (std::int64_t at = 0; at < c.size(); ++at) {
    const std::int64_t row = at / stride, col = at % stride;
    if (col >= cols) {
      ASSERT_TRUE(std::isnan(c[at])) << "written beside the tile";
      continue;
    }
    double sum = adds ? 2 : 0, size = 2;
    for (std::int64_t k = 0; k < a.depth; ++k) {
      const double product = a.at(i * a.panel + row, k) * b.at(j * b.panel + col, k);
      sum += product;
      size += std::abs(product);
    }
    ASSERT_NEAR(c[at], sum, 2e-7 * (2 + std::sqrt(static_cast<double>(a.depth))) * size)
        << "depth " << a.depth << " rows " << a.side << " cols " << b.side << " at " << row << ", " << col;
  }
}

/// Packs one to three panels of each and multiplies them, tile by tile.
void check_panels(const PanelKernels& kernels, Random& random) {
  for (const std::int64_t depth : {1, 2, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 300}) {
    for (std::int64_t turn = 0; turn < 8; ++turn) {
      const bool is_transposed = turn % 2 == 1;
      PackedOperand a(turn < 2 ? kernels.rows : 1 + random.below(3 * kernels.rows), depth, kernels.rows,
                      kernels.values, is_transposed,
                      is_transposed ? kernels.pack_rows_transposed : kernels.pack_rows, random);
      PackedOperand b(turn < 2 ? kernels.cols : 1 + random.below(3 * kernels.cols), depth, kernels.cols,
                      kernels.values, is_transposed,
                      is_transposed ? kernels.pack_cols_transposed : kernels.pack_cols, random);
      for (std::int64_t i = 0; i < a.panels(); ++i) {
        for (std::int64_t j = 0; j < b.panels(); ++j) check_tile(kernels, a, b, i, j, turn % 4 > 1);
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

/// What a linear layer's three products come to.
struct Products {
  std::vector<float> y, d_x, d_weight;
  bool operator==(const Products&) const = default;
};

/// y = x W^T, d_x = d_y W and d_W = d_y^T x; the last two added to 1 if `adds`.
Products run(Layer& layer, DType compute, bool adds) {
  const std::int64_t tokens = layer.x.rows, inputs = layer.x.cols, outputs = layer.w.rows;
  const auto ready = [&](std::int64_t n) {
    return std::vector<float>(static_cast<std::size_t>(n), adds ? 1.0f : nan);
  };
  Products p{ready(tokens * outputs), ready(tokens * inputs), ready(outputs * inputs)};
  PanelFactor factor;
  factor.pack(rows_as_side(layer.w.view()), compute);
  factor.multiply(rows_as_side(layer.x.view()), false, {p.y.data(), tokens, outputs});
  factor.pack(rows_as_depth(layer.w.view()), compute);
  factor.multiply(rows_as_side(layer.d_y.view()), adds, {p.d_x.data(), tokens, inputs});
  factor.pack(rows_as_depth(layer.x.view()), compute);
  factor.multiply(rows_as_depth(layer.d_y.view()), adds, {p.d_weight.data(), outputs, inputs});
  return p;
}

/// Of values rounded to `type`, the rest in double: what is left is f32's error of a sum.
void expect_product(const std::vector<float>& found, std::int64_t rows, std::int64_t cols, std::int64_t depth,
                    const std::function<double(std::int64_t, std::int64_t, std::int64_t)>& factors,
                    bool adds) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      double sum = adds, size = 1;
      for (std::int64_t k = 0; k < depth; ++k) {
        const double product = factors(i, j, k);
        sum += product;
        size += std::abs(product);
      }
      ASSERT_NEAR(found[i * cols + j], sum, 2e-7 * (2 + std::sqrt(static_cast<double>(depth))) * size)
          << i << ' ' << j;
    }
  }
}

TEST(PanelMatmulTest, IsTheProductsOfRoundedOperands) {
  Random random(2);
  const std::int64_t shapes[][3] = {{1, 1, 1},    {1, 40, 7},     {2, 3, 70},  {13, 33, 12},
                                    {24, 64, 48}, {50, 31, 65},   {7, 5, 530}, {600, 17, 11},
                                    {1100, 3, 2}, {129, 100, 61}, {3, 600, 9}};
  for (const auto& shape : shapes) {
    const std::int64_t tokens = shape[0], inputs = shape[1], outputs = shape[2];
    Layer l(tokens, inputs, outputs, random);
    for (const DType type : {DType::f32, DType::bf16}) {
      for (const bool adds : {false, true}) {
        const Products found = run(l, type, adds);
        using I = std::int64_t;
        expect_product(
            found.y, tokens, outputs, inputs,
            [&](I t, I o, I i) { return l.x.at(t, i, type) * l.w.at(o, i, type); }, false);
        expect_product(
            found.d_x, tokens, inputs, outputs,
            [&](I t, I i, I o) { return l.d_y.at(t, o, type) * l.w.at(o, i, type); }, adds);
        expect_product(
            found.d_weight, outputs, inputs, tokens,
            [&](I o, I i, I t) { return l.d_y.at(t, o, type) * l.x.at(t, i, type); }, adds);
      }
    }
  }
}

TEST(PanelMatmulTest, NoTokensAndNoOutputs) {
  Random random(3);
  Layer none(0, 5, 4, random);
  EXPECT_EQ(run(none, DType::f32, true).d_weight, std::vector<float>(20, 1.0f));
  EXPECT_EQ(run(none, DType::f32, false).d_weight, std::vector<float>(20, 0.0f));
  Layer narrow(3, 5, 0, random);
  EXPECT_EQ(run(narrow, DType::bf16, false).d_x, std::vector<float>(15, 0.0f));
  EXPECT_EQ(run(narrow, DType::bf16, true).d_x, std::vector<float>(15, 1.0f));
  Layer deaf(3, 0, 5, random);
  EXPECT_EQ(run(deaf, DType::bf16, false).y, std::vector<float>(15, 0.0f));
}

TEST(PanelMatmulTest, NeitherThreadsNorCompanyChangeBits) {
  Random random(4);
  const test::Threads restored(1);
  for (const auto& shape : {std::array<std::int64_t, 3>{530, 100, 90}, {1100, 40, 300}}) {
    Layer layer(shape[0], shape[1], shape[2], random);
    for (const DType type : {DType::f32, DType::bf16}) {
      set_threads(1);
      const Products expected = run(layer, type, true);
      for (const int count : {2, 3}) {
        set_threads(count);
        EXPECT_TRUE(expected == run(layer, type, true)) << count << " threads, " << name_of(type);
      }
      const Layer whole = layer;
      layer.x.rows = layer.d_y.rows = 7;  // of y and d_x the first rows are the same without the others
      const Products few = run(layer, type, true);
      EXPECT_TRUE(std::equal(few.y.begin(), few.y.end(), expected.y.begin()));
      EXPECT_TRUE(std::equal(few.d_x.begin(), few.d_x.end(), expected.d_x.begin()));
      layer = whole;
    }
  }
}

TEST(PanelMatmulTest, TakesARowBlockOfAWeight) {
  Random random(5);
  const std::vector<float> w = random.values(9 * 20), x = random.values(3 * 20);
  const Weight block = as_weight({w.data(), 9, 20}).row_block(2, 5);
  std::vector<float> y(15);
  panel_matmul({x.data(), 3, 20}, block, DType::f32, {y.data(), 3, 5});
  expect_product(
      y, 3, 5, 20,
      [&](std::int64_t t, std::int64_t o, std::int64_t i) {
        return static_cast<double>(x[t * 20 + i]) * w[(o + 2) * 20 + i];
      },
      false);
}

TEST(PanelMatmulTest, RefusesShapesThatDoNotFit) {
  float memory[64] = {};
  PanelFactor factor;
  factor.pack(rows_as_depth({memory, 4, 5}), DType::f32);
  EXPECT_EQ(test::error_of([&] {
              factor.multiply(rows_as_side({memory, 2, 3}), false, {memory, 2, 5});
            }),
            "panel matmul: a [2, 3], b [4, 5], c [2, 5] do not fit");
  Weight w = as_weight({memory, 4, 5});
  EXPECT_EQ(test::error_of([&] {
              panel_matmul({memory, 2, 5}, w, DType::f32, {memory, 2, 3});
            }),
            "panel matmul: a [2, 5], b [5, 4], c [2, 3] do not fit");
  w.dtype = DType::bf16;
  EXPECT_EQ(test::error_of([&] {
              panel_matmul({memory, 2, 5}, w, DType::f32, {memory, 2, 4});
            }),
            "panel matmul: found a weight of bf16, expected f32");
}

}  // namespace
}  // namespace mla
