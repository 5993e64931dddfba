// Matrix products over every stored type against double-precision loops, and their invariances bit by bit.
#include "mla/kernels/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "support/allocations.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Random;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// A random stored matrix and what it says, one number at a time.
struct Stored {
  Stored(DType type, std::int64_t rows, std::int64_t cols, Random& random, std::int64_t block_rows = 0,
         std::int64_t block_cols = 0)
      : bytes(static_cast<std::size_t>((rows * cols + 1) * size_of(type))),
        values(static_cast<std::size_t>(rows * cols)) {
    weight.dtype = type;
    weight.data = bytes.data() + size_of(type);  // aligned for its elements and no better
    weight.rows = rows;
    weight.cols = cols;
    if (type == DType::f8_e4m3) {
      weight.block_rows = block_rows;
      weight.block_cols = block_cols;
      const std::int64_t across = (cols + block_cols - 1) / block_cols;
      scales.resize(static_cast<std::size_t>((rows + block_rows - 1) / block_rows * across));
      for (float& s : scales) s = static_cast<float>(0.003 * (1.5 + random.unit()));
      weight.scales = scales.data();
    }
    for (std::int64_t i = 0; i < rows * cols; ++i) values[i] = put(i, random);
  }

  float put(std::int64_t i, Random& random) {
    std::byte* to = bytes.data() + (i + 1) * size_of(weight.dtype);
    const auto code = static_cast<unsigned>(random.below(65536));
    switch (weight.dtype) {
      case DType::f32: {
        const float value = static_cast<float>(random.unit());
        std::memcpy(to, &value, 4);
        return value;
      }
      case DType::bf16: {
        const std::uint16_t bits = test::nearest_bf16(static_cast<float>(random.unit()));
        std::memcpy(to, &bits, 2);
        return static_cast<float>(test::value_of_code(bits, 8, 7));
      }
      case DType::f16: {
        const auto bits = static_cast<std::uint16_t>(code & 0xbfff);  // below 2
        std::memcpy(to, &bits, 2);
        return static_cast<float>(test::value_of_code(bits, 5, 10));
      }
      default: {
        const auto bits = static_cast<std::uint8_t>((code & 0x7f) == 0x7f ? 0 : code);
        std::memcpy(to, &bits, 1);
        const std::int64_t across = (weight.cols + weight.block_cols - 1) / weight.block_cols;
        const float scale =
            scales[i / weight.cols / weight.block_rows * across + i % weight.cols / weight.block_cols];
        return static_cast<float>(test::value_of_code(bits, 4, 3) * scale);
      }
    }
  }

  std::vector<std::byte> bytes;
  std::vector<float> values, scales;
  Weight weight;
};

Stored any_weight(DType type, std::int64_t rows, std::int64_t cols, Random& random) {
  const std::pair<std::int64_t, std::int64_t> sides[] = {{128, 128}, {3, 5}, {1, 1}, {64, 7}, {500, 500}};
  const auto [down, across] = sides[random.below(5)];
  return {type, rows, cols, random, down, across};
}

/// Runs one product with strided x and y, gaps full of NaN, and compares it with loops in double over rounded
/// operands. Tolerance: f32 sums of k products, 6e-8 of the running sum each, growing as sqrt(k).
void check(const Stored& stored, std::int64_t first, std::int64_t count, bool transposed, DType compute,
           std::int64_t m, Random& random) {
  const Weight w = stored.weight.row_block(first, count);
  const std::int64_t k = transposed ? w.rows : w.cols, n = transposed ? w.cols : w.rows;
  std::vector<float> x(static_cast<std::size_t>(m * (k + 3)), nan),
      y(static_cast<std::size_t>(m * (n + 5)), nan);
  std::vector<double> a(static_cast<std::size_t>(m * k)), b(static_cast<std::size_t>(n * k));
  for (std::int64_t t = 0; t < m; ++t) {
    for (std::int64_t j = 0; j < k; ++j) {
      x[t * (k + 3) + j] = static_cast<float>(random.unit());
      a[t * k + j] = test::rounded(x[t * (k + 3) + j], compute);
    }
  }
  for (std::int64_t o = 0; o < n; ++o) {
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t row = first + (transposed ? j : o), col = transposed ? o : j;
      b[o * k + j] = test::rounded(stored.values[row * w.cols + col], compute);
    }
  }
  (transposed ? matmul_transposed : matmul)({x.data(), m, k, k + 3}, w, compute, {y.data(), m, n, n + 5});

  const auto expected = test::plain_matmul(a, b, m, n, k);
  for (auto* v : {&a, &b}) {
    for (double& value : *v) value = std::abs(value);
  }
  const auto magnitude = test::plain_matmul(a, b, m, n, k);
  for (std::int64_t t = 0; t < m; ++t) {
    for (std::int64_t o = 0; o < n; ++o) {
      const double allowed = 1.2e-7 * (2 + std::sqrt(static_cast<double>(k))) * magnitude[t * n + o];
      ASSERT_NEAR(y[t * (n + 5) + o], expected[t * n + o], allowed)
          << name_of(w.dtype) << " " << name_of(compute) << (transposed ? " transposed" : "") << " m " << m
          << " n " << n << " k " << k << " at " << t << ", " << o;
    }
    for (std::int64_t o = n; o < n + 5; ++o)
      ASSERT_TRUE(std::isnan(y[t * (n + 5) + o])) << "written between the rows";
  }
}

constexpr DType stored_types[] = {DType::f32, DType::bf16, DType::f16, DType::f8_e4m3};
constexpr DType compute_types[] = {DType::f32, DType::bf16};

TEST(MatmulTest, MatchesLoopsInDouble) {
  Random random(1);
  int turn = 0;
  for (const std::int64_t m : {0, 1, 2, 15, 16, 17, 40}) {
    for (const std::int64_t n : {1, 2, 7, 63, 64, 65, 129, 200}) {
      for (const std::int64_t k : {1, 2, 3, 16, 33, 64, 127, 300}) {
        const DType type = stored_types[turn % 4];  // all meet all m, n and k in turn
        const DType compute = compute_types[turn / 4 % 2];
        const bool transposed = turn / 8 % 2 != 0;
        const std::int64_t rows = transposed ? k : n, cols = transposed ? n : k;
        check(any_weight(type, rows, cols, random), 0, rows, transposed, compute, m, random);
        turn += 1 + (turn % 19 == 0);  // out of step with the loops
      }
    }
  }
}

TEST(MatmulTest, MatchesAtEveryTokenCount) {
  Random random(6);
  for (std::int64_t m = 1; m <= 50; ++m) {
    for (const DType type : stored_types) {
      const DType compute = compute_types[m % 2];
      const std::int64_t n = 1 + random.below(140), k = random.below(60);
      check(any_weight(type, n, k, random), 0, n, false, compute, m, random);
      check(any_weight(type, k, n, random), 0, k, true, compute, m, random);
    }
  }
  for (const bool transposed : {false, true}) {
    check(any_weight(DType::f32, 0, 0, random), 0, 0, transposed, DType::f32, 3, random);
    check(any_weight(DType::bf16, 3, 0, random), 0, 3, transposed, DType::bf16, 3, random);
    check(any_weight(DType::bf16, 0, 3, random), 0, 0, transposed, DType::bf16, 3, random);
  }
}

TEST(MatmulTest, AllocatesNothingOnceWarm) {
  const test::Threads one(1);
  Random random(7);
  for (const DType type : stored_types) {
    for (const DType compute : compute_types) {
      const Stored stored(type, 70, 90, random, 128, 128);
      const auto x = random.values(30 * 90);
      std::vector<float> y(30 * 90);
      const auto run = [&](std::int64_t m) {
        matmul({x.data(), m, 90}, stored.weight, compute, {y.data(), m, 70});
        matmul_transposed({x.data(), m, 70}, stored.weight, compute, {y.data(), m, 90});
      };
      run(30);
      run(1);
      const std::int64_t before = test::allocations();
      run(30);
      run(1);
      EXPECT_EQ(test::allocations(), before) << name_of(type) << " " << name_of(compute);
    }
  }
}

TEST(MatmulTest, RowBlocksMayBeginInsideAScaleBlock) {
  Random random(2);
  for (const DType type : stored_types) {
    for (const auto& [down, across] :
         std::vector<std::pair<std::int64_t, std::int64_t>>{{128, 128}, {3, 5}, {64, 7}}) {
      const Stored stored(type, 150, 37, random, down, across);
      for (const auto& [first, count] : std::vector<std::pair<std::int64_t, std::int64_t>>{
               {0, 150}, {1, 2}, {64, 65}, {127, 23}, {149, 1}}) {
        for (const DType compute : compute_types) {
          check(stored, first, count, false, compute, 3, random);
          check(stored, first, count, true, compute, 3, random);
        }
      }
      const Weight nested = stored.weight.row_block(50, 60).row_block(20, 10);
      std::vector<float> row(37);
      read_row(nested, 5, row.data());
      EXPECT_TRUE(std::equal(row.begin(), row.end(), stored.values.begin() + 75 * 37)) << name_of(type);
    }
  }
}

TEST(MatmulTest, ReadRowIsExact) {
  Random random(3);
  for (const DType type : stored_types) {
    for (const std::int64_t cols : {1, 5, 16, 31, 300}) {
      const Stored stored = any_weight(type, 9, cols, random);
      for (std::int64_t r = 0; r < 9; ++r) {
        std::vector<float> row(static_cast<std::size_t>(cols + 1), nan);
        read_row(stored.weight, r, row.data());
        EXPECT_TRUE(std::equal(row.begin(), row.end() - 1, stored.values.begin() + r * cols))
            << name_of(type);
        EXPECT_TRUE(std::isnan(row.back()));
      }
    }
  }
}

class MatmulBitsTest : public testing::Test {
 private:
  test::Threads restored_{1};
};

TEST_F(MatmulBitsTest, ARowDoesNotKnowItsCompanyNorTheThreads) {
  Random random(4);
  for (const DType type : stored_types) {
    for (const DType compute : compute_types) {
      for (const bool transposed : {false, true}) {
        const auto run = transposed ? matmul_transposed : matmul;
        const std::int64_t rows = 201, cols = 331, m = 37;  // large enough to wake the threads
        const Stored stored(type, rows, cols, random, 128, 128);
        const std::int64_t k = transposed ? rows : cols, n = transposed ? cols : rows;
        auto x = random.values(m * k);
        std::fill_n(x.begin() + 3 * k, k, nan);  // a neighbour's NaN is the neighbour's own
        set_threads(1);
        std::vector<float> expected(static_cast<std::size_t>(m * n));
        run({x.data(), m, k}, stored.weight, compute, {expected.data(), m, n});
        for (const int count : {1, 2, 3}) {
          set_threads(count);
          for (const std::int64_t chunk : {1, 2, 7, 15, 16, 17, 37}) {
            std::vector<float> found(expected.size());
            for (std::int64_t t = 0; t < m; t += chunk) {
              const std::int64_t some = std::min(chunk, m - t);
              run({x.data() + t * k, some, k}, stored.weight, compute, {found.data() + t * n, some, n});
            }
            std::fill_n(found.begin() + 3 * n, n, 0.0f);
            std::fill_n(expected.begin() + 3 * n, n, 0.0f);
            ASSERT_EQ(expected, found) << name_of(type) << " " << name_of(compute) << " transposed "
                                       << transposed << " threads " << count << " chunk " << chunk;
          }
        }
      }
    }
  }
}

TEST(MatmulTest, RefusesWhatDoesNotFit) {
  Random random(5);
  const Stored stored(DType::f32, 4, 6, random);
  float x[64] = {}, y[64] = {};
  const auto fails = [&](std::int64_t m, std::int64_t in, std::int64_t m_out, std::int64_t out,
                         bool transposed) {
    return !test::error_of([&] {
              (transposed ? matmul_transposed : matmul)({x, m, in}, stored.weight, DType::f32,
                                                        {y, m_out, out});
            }).empty();
  };
  EXPECT_FALSE(fails(2, 6, 2, 4, false));
  EXPECT_TRUE(fails(2, 5, 2, 4, false));
  EXPECT_TRUE(fails(2, 6, 2, 5, false));
  EXPECT_TRUE(fails(2, 6, 3, 4, false));
  EXPECT_FALSE(fails(2, 4, 2, 6, true));
  EXPECT_TRUE(fails(2, 6, 2, 4, true));
  EXPECT_TRUE(fails(2, 4, 1, 6, true));
  EXPECT_NE(test::error_of([&] { as_weight({x, 2, 3, 4}); }), "");
  Weight int8 = stored.weight;
  int8.dtype = DType::i8;
  EXPECT_NE(test::error_of([&] {
              matmul({x, 1, 6}, int8, DType::f32, {y, 1, 4});
            }).find("int8"),
            std::string::npos);
}

TEST(MatmulTest, ADenseMatrixIsAWeight) {
  const float w[] = {1, 2, 3, 4, 5, 6};
  const float x[] = {1, 10, 100};
  float y[2];
  matmul({x, 1, 3}, as_weight({w, 2, 3}), DType::f32, {y, 1, 2});
  EXPECT_EQ(y[0], 321);
  EXPECT_EQ(y[1], 654);
}

}  // namespace
}  // namespace mla
