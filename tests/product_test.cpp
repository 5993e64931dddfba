// The products of every instruction set against double-precision loops, and a token's bits against its
// company. Operands end at an unreadable page.
#include "mla/kernels/product.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/edge.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Edge;
using test::Random;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

template <class T>
std::vector<T> as(const std::vector<float>& values) {
  std::vector<T> out;
  for (const float value : values) {
    if constexpr (sizeof(T) == sizeof(bf16))
      out.push_back(to_bf16(value));
    else
      out.push_back(value);
  }
  return out;
}

/// Tokens x [m, k] as a DotTile takes them.
template <class T>
std::vector<T> packed(const std::vector<T>& x, std::int64_t m, std::int64_t k, std::int64_t group) {
  const std::int64_t set = set_tokens(m, group), step = dot_step<T>, set_size = set * packed_depth(k);
  std::vector<T> out(static_cast<std::size_t>(parts(m, set) * set_size), T{});
  for (std::int64_t t = 0; t < m; ++t) {
    for (std::int64_t d = 0; d < k; ++d)
      out[t / set * set_size + (d / step * set + t % set) * step + d % step] = x[t * k + d];
  }
  return out;
}

template <class V, class T>
struct Products {
  std::int64_t group;
  void (*dot)(const DotTile<V, T>&);
  void (*sum)(const SumTile<V, T>&);
};

/// One tile of m tokens, n outputs and depth k: as a dot product of weights [n, k], and as a sum of weights
/// [k, n].
template <class V, class T>
class Case {
 public:
  Case(Products<V, T> kernels, std::int64_t m, std::int64_t n, std::int64_t k, Random& random)
      : kernels_(kernels),
        m_(m),
        n_(n),
        k_(k),
        x_(as<T>(random.values(m * k))),
        dot_weights_(as<V>(random.values(n * stride(k)))),
        sum_weights_(as<V>(random.values(k * stride(n)))) {}

  void check() const {
    const std::vector<float> dot = run_dot(0, m_), sum = run_sum(0, m_);
    for (std::int64_t t = 0; t < m_; ++t) {
      for (std::int64_t o = 0; o < n_; ++o) {
        double a = 0, b = 0, size = 0;
        for (std::int64_t d = 0; d < k_; ++d) {
          const double value = to_float(x_[t * k_ + d]);
          a += value * to_float(dot_weights_[o * stride(k_) + d]);
          b += value * to_float(sum_weights_[d * stride(n_) + o]);
          size += std::abs(value) * 2;  // weights are about 1
        }
        const double allowed = 1.2e-7 * (2 + std::sqrt(static_cast<double>(k_))) * size;
        ASSERT_NEAR(dot[t * n_ + o], a, allowed) << where() << " token " << t << " output " << o;
        ASSERT_NEAR(sum[t * n_ + o], b, allowed) << where() << " token " << t << " output " << o;
      }
    }
  }

  /// Each token alone, and the last ones together: the same bits as in the whole tile.
  void check_company() const {
    const std::vector<float> dot = run_dot(0, m_), sum = run_sum(0, m_);
    for (std::int64_t t = 0; t < m_; ++t) {
      for (const std::int64_t count : {std::int64_t{1}, m_ - t}) {
        const std::vector<float> some_dot = run_dot(t, count), some_sum = run_sum(t, count);
        ASSERT_EQ(0, std::memcmp(some_dot.data(), dot.data() + t * n_, some_dot.size() * 4)) << where() << t;
        ASSERT_EQ(0, std::memcmp(some_sum.data(), sum.data() + t * n_, some_sum.size() * 4)) << where() << t;
      }
    }
  }

 private:
  static std::int64_t stride(std::int64_t width) { return width + 3; }
  std::string where() const { return fmt::format("m {} n {} k {}", m_, n_, k_); }
  std::vector<T> tokens(std::int64_t first, std::int64_t count) const {
    return {x_.begin() + first * k_, x_.begin() + (first + count) * k_};
  }
  /// y [count][n] out of a strided y whose gaps stay NaN.
  std::vector<float> dense(const std::vector<float>& y, std::int64_t count) const {
    std::vector<float> out;
    for (std::int64_t t = 0; t < count; ++t) {
      out.insert(out.end(), y.begin() + t * (n_ + 2), y.begin() + t * (n_ + 2) + n_);
      for (std::int64_t i = n_; i < n_ + 2; ++i) EXPECT_TRUE(std::isnan(y[t * (n_ + 2) + i])) << where();
    }
    return out;
  }

  std::vector<float> run_dot(std::int64_t first, std::int64_t count) const {
    std::vector<V> rows = dot_weights_;
    rows.resize(static_cast<std::size_t>((n_ - 1) * stride(k_) + k_));
    Edge<V> weights(rows);
    Edge<T> token_memory(packed(tokens(first, count), count, k_, kernels_.group));
    std::vector<float> y(static_cast<std::size_t>(count * (n_ + 2)), nan);
    if (sizeof(V) == sizeof(T) || count == 1) {
      const auto* ahead = reinterpret_cast<const std::byte*>(weights.data());
      kernels_.dot({weights.data(), stride(k_), n_, k_, token_memory.data(), count, ahead, first % 2 * 64,
                    y.data(), n_ + 2});
      return dense(y, count);
    }
    for (std::int64_t t = 0; t < count; ++t) {  // dot_bf16 takes one token at a time
      const std::vector<float> one = run_dot(first + t, 1);
      std::copy(one.begin(), one.end(), y.begin() + t * (n_ + 2));
    }
    return dense(y, count);
  }

  std::vector<float> run_sum(std::int64_t first, std::int64_t count) const {
    std::vector<V> rows = sum_weights_;
    rows.resize(static_cast<std::size_t>(k_ == 0 ? 0 : (k_ - 1) * stride(n_) + n_));
    Edge<V> weights(rows);
    const std::int64_t even = (k_ + 1) / 2 * 2;
    std::vector<T> padded(static_cast<std::size_t>(count * even), T{});
    for (std::int64_t t = 0; t < count; ++t)
      std::copy_n(x_.begin() + (first + t) * k_, k_, padded.begin() + t * even);
    Edge<T> token_memory(padded);
    std::vector<float> y(static_cast<std::size_t>(count * (n_ + 2)), nan);
    kernels_.sum({weights.data(), stride(n_), n_, k_, token_memory.data(), even, count, y.data(), n_ + 2});
    return dense(y, count);
  }

  Products<V, T> kernels_;
  std::int64_t m_, n_, k_;
  std::vector<T> x_;
  std::vector<V> dot_weights_, sum_weights_;
};

template <class V, class T>
void check_products(Products<V, T> kernels) {
  Random random(1);
  std::int64_t turn = 0;
  for (std::int64_t m = 1; m <= dot_tokens; ++m) {
    for (const std::int64_t k : {0, 1, 2, 3, 7, 8, 9, 16, 63, 64, 65, 130}) {
      const std::int64_t n = 1 + turn++ * 7 % dot_outputs;
      Case<V, T>(kernels, m, n, k, random).check();
    }
  }
  for (const std::int64_t n : {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64})
    Case<V, T>(kernels, 5, n, 70, random).check();
  Case<V, T>(kernels, 3, 9, 33001, random).check();  // several parts of the depth
  for (const std::int64_t m : {2, 9, 24}) {
    Case<V, T>(kernels, m, 21, 75, random).check_company();
    Case<V, T>(kernels, m, 5, 16500, random).check_company();
  }
}

class ProductTest : public testing::TestWithParam<Isa> {};

TEST_P(ProductTest, F32Weights) {
  const ProductKernels& k = product_kernels(GetParam());
  check_products<float, float>({k.group, k.dot_f32, k.sum_f32});
}

TEST_P(ProductTest, Bf16Weights) {
  const ProductKernels& k = product_kernels(GetParam());
  check_products<bf16, float>({k.group, k.dot_bf16, k.sum_bf16});
}

/// What one token makes of bf16 weights as they lie is what several make of widened ones.
TEST_P(ProductTest, WidenedWeightsGiveTheSameBits) {
  const ProductKernels& kernels = product_kernels(GetParam());
  Random random(2);
  for (const std::int64_t k : {1, 8, 13, 300}) {
    const std::int64_t n = 19;
    const std::vector<bf16> narrow = as<bf16>(random.values(n * k));
    std::vector<float> wide, y(n), expected(n);
    for (const bf16 value : narrow) wide.push_back(to_float(value));
    const std::vector<float> token = packed(random.values(k), 1, k, kernels.group);
    kernels.dot_f32({wide.data(), k, n, k, token.data(), 1, nullptr, 0, expected.data(), n});
    kernels.dot_bf16({narrow.data(), k, n, k, token.data(), 1, nullptr, 0, y.data(), n});
    EXPECT_EQ(expected, y) << k;
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, ProductTest, testing::ValuesIn(test::supported_isas()),
                         [](const auto& isa) { return std::string(name_of(isa.param)); });

TEST(ProductTest, Bf16Pairs) {
  if (!supports(Isa::avx512_bf16)) GTEST_SKIP() << "this CPU does not multiply bf16 pairs";
  check_products<bf16, bf16>({bf16_pair_group, dot_bf16_pairs, sum_bf16_pairs});
}

}  // namespace
}  // namespace mla
