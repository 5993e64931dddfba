// The forward of attention in training against its definition in double, and its invariances bit by bit.
#include "mla/attention/forward.h"

#include <gtest/gtest.h>

#include <memory>

#include "support/dense_problem.h"
#include "support/edge.h"

namespace mla {
namespace {

using test::Edge;
using test::Random;
using test::Sizes;
using Problem = test::DenseProblem;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// Memory of a problem that ends where its last value does.
struct Call {
  explicit Call(const Problem& p)
      : queries(p.queries),
        rows(p.rows.data),
        out(std::vector<float>(p.out.size(), nan)),
        lse(std::vector<float>(p.lse.size(), nan)) {
    forward = {{queries.data(), p.tokens, p.token_stride, p.head_stride},
               rows.data(),
               p.rows.length,
               out.data(),
               lse.data()};
  }
  bool operator==(Call& other) {
    return std::memcmp(out.data(), other.out.data(), 4 * out.size()) == 0 &&
           std::memcmp(lse.data(), other.lse.data(), 4 * lse.size()) == 0;
  }

  Edge<float> queries, rows, out, lse;
  AttentionForward forward{};
};

std::unique_ptr<Call> run(const Problem& p, const LeafKernels& leaf = leaf_kernels()) {
  auto call = std::make_unique<Call>(p);
  attend_forward(p.shape, p.row_shape(), {&call->forward, 1}, leaf);
  return call;
}

/// Values are of size 1 and weights sum to 1, so sums of f32 are off by some 1e-7 of that; scores are off by
/// as much of theirs, of size 1 to 4 where `spread` is 1.
void check_all_isas(const Problem& p, double tolerance = 3e-6) {
  for (const Isa isa : test::supported_isas()) {
    const auto found = run(p, leaf_kernels(isa));
    const std::string where = describe(p, isa);
    for (std::size_t i = 0; i < p.out.size(); ++i)
      ASSERT_NEAR(found->out[i], p.out[i], tolerance) << where << " at " << i;
    for (std::size_t i = 0; i < p.lse.size(); ++i) {
      if (std::isinf(p.lse[i]))
        ASSERT_EQ(found->lse[i], p.lse[i]) << where << " at " << i;
      else
        ASSERT_NEAR(found->lse[i], p.lse[i], tolerance * (1 + std::abs(p.lse[i]))) << where << " at " << i;
    }
  }
}

TEST(AttentionForwardTest, MatchesItsDefinition) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> widths{
      {1, 1}, {3, 5}, {5, 3}, {16, 16}, {33, 24}, {48, 32}, {64, 64}, {16, 48}, {192, 128}, {576, 512}};
  const std::vector<std::pair<std::int64_t, std::int64_t>> heads{{1, 1}, {3, 3}, {6, 2}, {5, 1}, {8, 4}};
  Random random(2);
  for (const auto& [d_qk, d_v] : widths) {
    for (const std::int64_t tokens : {0, 1, 2, 7, 63, 64, 65, 130}) {
      const auto [h_q, h_kv] = random.pick(heads);
      const std::int64_t cached = random.pick<std::int64_t>({0, 0, 1, 31, 96, 100});
      const bool latent = d_v <= d_qk && random.below(2) > 0;
      const bool causal = random.below(3) > 0, own_rows = random.below(3) == 0;
      check_all_isas(
          Problem({{h_q, h_kv, d_qk, d_v, 1, causal}, tokens, tokens + cached, latent, own_rows}, random));
    }
  }
}

/// Every place of the diagonal in the tiles of 64 queries and 96 keys, whose blocks are 4 or 8 rows high.
TEST(AttentionForwardTest, MatchesAlongTheDiagonal) {
  Random random(3);
  for (std::int64_t cached = 0; cached < 100; cached += 1 + random.below(5)) {
    const std::int64_t tokens = 1 + random.below(140);
    check_all_isas(Problem({{1, 1, 5, 3, 1, true}, tokens, tokens + cached, false}, random));
  }
}

TEST(AttentionForwardTest, MatchesOverSeveralBlocks) {
  Random random(4);
  check_all_isas(Problem({{1, 1, 576, 512, 1, true}, 270, 280, true}, random));
  check_all_isas(Problem({{1, 1, 3, 2, 1, true}, 1030, 1030, false}, random));
  check_all_isas(Problem({{1, 1, 3, 2, 1, false}, 1025, 99, true}, random));
}

/// Queries and keys four times as large: the largest score so far rises and the sums shrink, tile by tile.
/// Latents make the values larger as well.
TEST(AttentionForwardTest, MatchesWhereWeightsAreSharp) {
  Random random(5);
  check_all_isas(Problem({{2, 1, 64, 64, 1, true}, 70, 470, false}, random, 4), 3e-5);
  check_all_isas(Problem({{5, 1, 24, 12, 1, false}, 20, 300, true}, random, 4), 1e-4);
}

TEST(AttentionForwardTest, QueriesThatSeeNothingGetNothing) {
  Random random(6);
  for (const std::int64_t length : {0, 1, 3, 64}) {
    for (const std::int64_t hidden : {1, 5, 64, 80}) {
      const Problem p({{4, 2, 12, 8, 1, true}, length + hidden, length, length % 2 == 0}, random);
      check_all_isas(p);
      for (std::int64_t i = 0; i < hidden * p.shape.h_q; ++i) ASSERT_TRUE(std::isinf(p.lse[i]));
    }
  }
}

/// A loss that is NaN must be seen, not hidden.
TEST(AttentionForwardTest, NanStaysNan) {
  Random random(8);
  for (const Isa isa : test::supported_isas()) {
    Problem p({{1, 1, 8, 8, 1, true}, 20, 20, false}, random);
    p.queries[p.query_at(3) + 2] = nan;
    const auto found = run(p, leaf_kernels(isa));
    for (std::int64_t c = 0; c < 8; ++c) {
      EXPECT_TRUE(std::isnan(found->out[3 * 8 + c])) << name_of(isa);
      EXPECT_FALSE(std::isnan(found->out[4 * 8 + c])) << name_of(isa);
    }
    EXPECT_TRUE(std::isnan(found->lse[3])) << name_of(isa);
  }
}

TEST(AttentionForwardTest, BitsDependNeitherOnThreadsNorOnCompany) {
  Random random(7);
  for (const AttentionShape& shape : {AttentionShape{4, 4, 48, 32, 1, true}, {6, 2, 24, 24, 1, false}}) {
    std::vector<Problem> problems;
    std::vector<std::unique_ptr<Call>> alone;
    const test::Threads one(1);
    for (const std::int64_t tokens : {130, 1, 64, 0, 100}) {
      problems.emplace_back(Sizes{shape, tokens, tokens + 33, false}, random);
      alone.push_back(run(problems.back()));
    }
    for (const int count : {1, 2, 3}) {
      const test::Threads threads(count);
      std::vector<std::unique_ptr<Call>> calls;
      std::vector<AttentionForward> batch;
      for (const Problem& p : problems)
        batch.push_back(calls.emplace_back(std::make_unique<Call>(p))->forward);
      attend_forward(problems[0].shape, problems[0].row_shape(), batch);
      for (std::size_t i = 0; i < problems.size(); ++i)
        EXPECT_TRUE(*calls[i] == *alone[i]) << count << " threads, in a batch, " << i;
    }
  }
}

TEST(AttentionForwardTest, RejectsShapesThatAreNone) {
  const auto error = [](const AttentionShape& shape, std::int64_t length) {
    AttentionForward one{};
    one.length = length;
    return test::error_of([&] { attend_forward(shape, {24, 12, 8}, {&one, 1}); });
  };
  EXPECT_EQ(error({4, 2, 8, 4, 1, true}, 0), "");
  EXPECT_NE(error({3, 2, 8, 4, 1, true}, 0).find("attention forward: found h_q 3, h_kv 2"),
            std::string::npos);
  EXPECT_EQ(error({4, 2, 8, 4, 1, true}, -1),
            "attention forward: found 0 tokens over -1 rows, expected no negative numbers");
}

}  // namespace
}  // namespace mla
