// The gradient of attention against its formulas in double, those against differences of forward, and its
// invariances bit by bit.
#include "mla/attention/backward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "support/attention_gradient.h"
#include "support/dense_problem.h"
#include "support/edge.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Edge;
using test::GradientAnswer;
using test::Random;
using test::Sizes;
using Problem = test::DenseProblem;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// Memory of a problem that ends where its last value does, the gradients filled with what was there before.
struct Call {
  explicit Call(const Problem& p)
      : queries(p.queries),
        rows(p.rows.data),
        out(p.out),
        lse(p.lse),
        d_out(p.d_out),
        d_queries(std::vector<float>(p.queries.size(), nan)),
        d_rows(static_cast<std::int64_t>(p.rows.data.size())) {
    for (std::int64_t i = 0; i < d_rows.size(); ++i) d_rows[i] = before(i);
    gradient = {{queries.data(), p.tokens, p.token_stride, p.head_stride},
                rows.data(),
                p.rows.length,
                out.data(),
                lse.data(),
                d_out.data(),
                d_queries.data(),
                d_rows.data()};
  }
  static float before(std::int64_t i) { return static_cast<float>(i % 7) * 0.25f; }
  bool operator==(Call& other) {
    return std::memcmp(d_queries.data(), other.d_queries.data(), 4 * d_queries.size()) == 0 &&
           std::memcmp(d_rows.data(), other.d_rows.data(), 4 * d_rows.size()) == 0;
  }

  Edge<float> queries, rows, out, lse, d_out, d_queries, d_rows;
  AttentionGradient gradient{};
};

std::unique_ptr<Call> run(const Problem& p, const LeafKernels& leaf = leaf_kernels()) {
  auto call = std::make_unique<Call>(p);
  attend_backward(p.shape, p.row_shape(), {&call->gradient, 1}, leaf);
  return call;
}

GradientAnswer answer_of(const Problem& p) {
  return plain_attention_gradient(p.shape, p.query_view(), p.rows, p.d_out);
}

/// The largest error of a value relative to what was added up for it; NaN wins.
struct Worst {
  double value = 0;
  void see(double expected, double size, double found) {
    const double error = found == expected ? 0 : std::abs(found - expected) / size;
    value = error <= value ? value : error;
  }
};

/// Why 4e-6 of rows: scores of size 1 to 4 are f32 sums of up to 576 products, off by about 4e-7, and so is
/// what d_out . v is; lse, up to 8, is rounded by 2e-7; exp adds 1e-7: 1e-6 of each weight, more for the few
/// small weights that far scores have. The worst that the sweep sees is 2.3e-6, where a value is the sum of
/// one term. A query's is a sum over rows, which evens that out: 4e-7, so a quarter is asked of it. Where
/// nothing is seen nothing is added, so that d_rows keeps its bits.
void expect_near(const Problem& p, const GradientAnswer& expected, Call& found, const std::string& where,
                 double tolerance = 4e-6) {
  Worst of_queries, of_rows;
  std::vector<bool> is_query(p.queries.size());
  for (std::int64_t i = 0; i < p.tokens * p.shape.h_q; ++i) {
    for (std::int64_t c = 0; c < p.shape.d_qk; ++c) {
      const std::int64_t from = i * p.shape.d_qk + c, to = p.query_at(i) + c;
      is_query[to] = true;
      of_queries.see(expected.d_queries[from], expected.d_queries_size[from], found.d_queries[to]);
    }
  }
  for (std::size_t i = 0; i < is_query.size(); ++i)
    ASSERT_TRUE(is_query[i] || std::isnan(found.d_queries[i])) << where << ", between queries";
  for (std::int64_t i = 0; i < found.d_rows.size(); ++i) {
    const double before = Call::before(i);  // its sum with the gradient is rounded once more
    if (expected.d_rows_size[i] == 0) {
      ASSERT_EQ(found.d_rows[i], Call::before(i)) << where;
    } else {
      of_rows.see(before + expected.d_rows[i], before / 16 + expected.d_rows_size[i], found.d_rows[i]);
    }
  }
  EXPECT_LE(of_queries.value, tolerance / 4) << where << ", queries";
  EXPECT_LE(of_rows.value, tolerance) << where << ", rows";
}

void check_all_isas(const Problem& p, double tolerance = 4e-6) {
  const GradientAnswer expected = answer_of(p);
  for (const Isa isa : test::supported_isas())
    expect_near(p, expected, *run(p, leaf_kernels(isa)), describe(p, isa), tolerance);
}

// ---------------------------------------------------------------- the slow version

double loss(const Problem& p) {
  const auto forward = test::plain_attention(p.shape, p.query_view(), p.rows);
  double sum = 0;
  for (std::size_t i = 0; i < p.d_out.size(); ++i) sum += static_cast<double>(p.d_out[i]) * forward.out[i];
  return sum;
}

/// Differences over 2^-7 leave out third derivatives times 1e-5.
void expect_slope(Problem& p, float& x, double found, const std::string& where) {
  const float middle = x;
  x = middle + 0x1p-8f;
  const double high = loss(p), above = x;
  x = middle - 0x1p-8f;
  const double slope = (high - loss(p)) / (above - static_cast<double>(x));
  x = middle;
  EXPECT_NEAR(found, slope, 1e-4 * (1 + std::abs(slope))) << where;
}

TEST(AttentionBackwardTest, SlowVersionIsTheSlopeOfForward) {
  Random random(1);
  for (const Sizes& sizes :
       {Sizes{{2, 2, 3, 2, 1, true}, 3, 5, false}, Sizes{{4, 2, 3, 4, 1, true}, 3, 3, false},
        Sizes{{3, 1, 5, 2, 1, true}, 4, 2, true}, Sizes{{2, 1, 2, 2, 1, false}, 2, 4, true}}) {
    Problem p(sizes, random);
    const GradientAnswer answer = answer_of(p);
    const std::string where = describe(p, Isa::scalar);
    for (std::int64_t i = 0; i < p.tokens * p.shape.h_q; ++i) {
      for (std::int64_t c = 0; c < p.shape.d_qk; ++c)
        expect_slope(p, p.queries[p.query_at(i) + c], answer.d_queries[i * p.shape.d_qk + c], where);
    }
    for (std::size_t i = 0; i < p.rows.data.size(); ++i) {
      if (!std::isnan(p.rows.data[i])) expect_slope(p, p.rows.data[i], answer.d_rows[i], where);
    }
  }
}

// ---------------------------------------------------------------- against it

/// Multiply-adds of a case, to keep the sweep short.
std::int64_t cost(const Sizes& s) {
  return s.shape.h_q * s.tokens * s.length * (3 * s.shape.d_qk + 2 * s.shape.d_v);
}

TEST(AttentionBackwardTest, MatchesItsDefinition) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> widths{{1, 1},   {3, 5},     {5, 3},    {16, 16},
                                                                  {24, 12}, {33, 24},   {48, 32},  {64, 64},
                                                                  {16, 48}, {192, 128}, {576, 512}};
  // kv heads and query heads for each: MHA, GQA and MQA, with more than eight for each too
  const std::vector<std::pair<std::int64_t, std::int64_t>> heads{{1, 1}, {3, 3}, {6, 2}, {15, 5},
                                                                 {7, 1}, {8, 1}, {9, 1}, {18, 2}};
  Random random(2);
  for (const auto& [d_qk, d_v] : widths) {
    for (const std::int64_t tokens : {0, 1, 2, 7, 63, 64, 65, 130}) {
      auto [h_q, h_kv] = random.pick(heads);
      const std::int64_t cached = random.pick<std::int64_t>({0, 0, 1, 31, 96, 100});
      Sizes sizes{{h_q, h_kv, d_qk, d_v, 1, random.below(3) > 0}, tokens, tokens + cached, false};
      while (cost(sizes) > 6'000'000 && sizes.shape.h_q > 1) {
        sizes.shape.h_q = sizes.shape.h_q / 2 / h_kv * h_kv;
        if (sizes.shape.h_q == 0) sizes.shape.h_q = sizes.shape.h_kv = h_kv = 1;
      }
      sizes.latent = d_v <= d_qk && random.below(2) > 0;
      check_all_isas(Problem(sizes, random));
    }
  }
}

/// Every place of the diagonal in the tiles of 64 queries and 96 keys, whose blocks are 4 or 8 rows high.
TEST(AttentionBackwardTest, MatchesAlongTheDiagonal) {
  Random random(3);
  for (std::int64_t cached = 0; cached < 100; cached += 1 + random.below(5)) {
    const std::int64_t tokens = 1 + random.below(140);
    check_all_isas(Problem({{1, 1, 5, 3, 1, true}, tokens, tokens + cached, false}, random));
  }
}

/// Blocks hold 128 queries of a width of 576, 448 of 192, 1024 of small ones.
TEST(AttentionBackwardTest, MatchesOverSeveralBlocks) {
  Random random(4);
  check_all_isas(Problem({{1, 1, 576, 512, 1, true}, 135, 140, true}, random));
  check_all_isas(Problem({{1, 1, 3, 2, 1, true}, 1030, 1030, false}, random));
  check_all_isas(Problem({{1, 1, 3, 2, 1, false}, 1025, 99, true}, random));
}

/// Queries and keys four times as large: scores of size 40, where a few rows have all the weight, are off by
/// ten times as much as in the other tests.
TEST(AttentionBackwardTest, MatchesWhereWeightsAreSharp) {
  Random random(5);
  check_all_isas(Problem({{2, 1, 64, 64, 1, true}, 70, 170, false}, random, 4), 4e-5);
  check_all_isas(Problem({{9, 1, 24, 12, 1, false}, 20, 100, true}, random, 4), 4e-5);
}

TEST(AttentionBackwardTest, QueriesThatSeeNothingGetAndAddNothing) {
  Random random(6);
  for (const bool latent : {false, true}) {
    for (const std::int64_t length : {0, 1, 3, 64}) {
      for (const std::int64_t hidden : {1, 5, 64, 80}) {
        const Problem p({{4, 2, 12, 8, 1, true}, length + hidden, length, latent}, random);
        const GradientAnswer expected = answer_of(p);
        for (const Isa isa : test::supported_isas()) {
          const auto found = run(p, leaf_kernels(isa));
          expect_near(p, expected, *found, describe(p, isa));
          for (std::int64_t i = 0; i < hidden * p.shape.h_q; ++i) {
            ASSERT_EQ(p.lse[i], infinity);
            for (std::int64_t c = 0; c < p.shape.d_qk; ++c)
              ASSERT_EQ(found->d_queries[p.query_at(i) + c], 0.0f) << describe(p, isa);
          }
        }
      }
    }
  }
}

// ---------------------------------------------------------------- bits, errors

TEST(AttentionBackwardTest, BitsDependNeitherOnThreadsNorOnCompany) {
  Random random(7);
  struct Case {
    AttentionShape shape;
    bool latent;
  };
  for (const Case& c : {Case{{4, 4, 48, 32, 1, true}, false}, Case{{6, 2, 24, 24, 1, true}, false},
                        Case{{20, 1, 40, 32, 1, true}, true}, Case{{18, 2, 16, 8, 1, false}, false}}) {
    std::vector<Problem> problems;
    std::vector<std::unique_ptr<Call>> alone;
    const test::Threads one(1);
    for (const std::int64_t tokens : {130, 1, 64, 0, 100}) {
      problems.emplace_back(Sizes{c.shape, tokens, tokens + 33, c.latent}, random);
      alone.push_back(run(problems.back()));
    }
    for (const int count : {1, 2, 3}) {
      const test::Threads threads(count);
      std::vector<std::unique_ptr<Call>> calls;
      std::vector<AttentionGradient> batch;
      for (const Problem& p : problems)
        batch.push_back(calls.emplace_back(std::make_unique<Call>(p))->gradient);
      attend_backward(problems[0].shape, problems[0].row_shape(), batch);
      for (std::size_t i = 0; i < problems.size(); ++i) {
        EXPECT_TRUE(*calls[i] == *alone[i]) << count << " threads, in a batch, " << i;
        EXPECT_TRUE(*run(problems[i]) == *alone[i]) << count << " threads, alone, " << i;
      }
    }
  }
}

TEST(AttentionBackwardTest, RejectsShapesThatAreNone) {
  const auto error = [](const AttentionShape& shape, const RowShape& rows, std::int64_t tokens = 0,
                        std::int64_t length = 0) {
    AttentionGradient one{};
    one.queries.tokens = tokens;
    one.length = length;
    return test::error_of([&] { attend_backward(shape, rows, {&one, 1}); });
  };
  const RowShape rows{24, 12, 8};
  EXPECT_EQ(error({4, 2, 8, 4, 1, true}, rows), "");
  EXPECT_EQ(error({4, 1, 8, 4, 1, true}, {12, 0, 8}), "") << "one head needs no stride";
  EXPECT_NE(error({3, 2, 8, 4, 1, true}, rows).find("found h_q 3, h_kv 2"), std::string::npos);
  for (const AttentionShape& shape : {AttentionShape{0, 1, 8, 4}, {4, 0, 8, 4}, {4, 2, 0, 4}, {4, 2, 8, 0}})
    EXPECT_NE(error(shape, rows).find("expected positive sizes"), std::string::npos);
  EXPECT_NE(error({4, 2, 8, 4, 1, true}, {24, 12, 7}).find("values 7 floats behind"), std::string::npos);
  EXPECT_NE(error({4, 2, 4, 8, 1, true}, {24, 12, 0}).find("d_v 8"), std::string::npos);
  EXPECT_NE(error({4, 2, 8, 4, 1, true}, {24, 11, 8}).find("11 floats apart"), std::string::npos);
  EXPECT_NE(
      error({4, 2, 8, 4, 1, true}, {23, 12, 8}, 0, 2)
          .find("found 2 rows 23 floats apart of 2 kv heads 12 floats apart, expected room for heads of 12"),
      std::string::npos);
  EXPECT_EQ(error({4, 2, 8, 4, 1, true}, {12, 24, 8}, 0, 2), "") << "heads in rows of their own";
  EXPECT_NE(error({4, 2, 8, 4, 1, true}, {12, 35, 8}, 0, 3).find("heads 35 floats apart"), std::string::npos);
  EXPECT_NE(error({4, 2, 8, 4, 1, true}, rows, -1).find("found -1 tokens"), std::string::npos);
  EXPECT_NE(error({4, 2, 8, 4, 1, true}, rows, 0, -2).find("over -2 rows"), std::string::npos);
}

}  // namespace
}  // namespace mla
