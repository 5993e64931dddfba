// Attention against its definition in double, and its invariances bit by bit.
#include "mla/attention/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "support/attention_problem.h"
#include "support/heads_apart.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Random;

using test::infinity;
using test::nan;
using test::Pages;
using test::Problem;
using test::Result;

/// Why 2e-6: scores here are of size 1 to 4 and come from f32 sums of up to 576 products, each rounded to
/// 6e-8 of sums that are a few times larger: about 4e-7, which moves p, and with it the output, by as much
/// relative to sum p |v|; the exp adds 1e-7 and the sum over rows 3e-7.
void expect_near(const test::AttentionAnswer& expected, const Result& found, const std::string& where,
                 double tolerance = 2e-6, double lse_tolerance = 2e-6) {
  double worst = 0, worst_lse = 0;
  for (std::size_t i = 0; i < expected.out.size(); ++i) {
    const double error = std::abs(expected.out[i] - found.out[i]);
    if (expected.weight[i] == 0) {
      ASSERT_EQ(found.out[i], 0.0f) << where;
      continue;
    }
    worst = error / expected.weight[i] <= worst ? worst : error / expected.weight[i];  // NaN wins
  }
  for (std::size_t i = 0; i < expected.lse.size(); ++i) {
    if (std::isinf(expected.lse[i])) {
      ASSERT_EQ(found.lse[i], infinity) << where;
      continue;
    }
    const double error = std::abs(expected.lse[i] - found.lse[i]) / std::max(1.0, std::abs(expected.lse[i]));
    worst_lse = error <= worst_lse ? worst_lse : error;
  }
  EXPECT_LE(worst, tolerance) << where;
  EXPECT_LE(worst_lse, lse_tolerance) << where;
}

std::string describe(const Problem& p, std::int64_t page_rows, Isa isa) {
  const AttentionShape& s = p.shape;
  return fmt::format(
      "h_q {} h_kv {} d_qk {} d_v {} causal {} tokens {} rows {} page {} {} latent {} many {} {}", s.h_q,
      s.h_kv, s.d_qk, s.d_v, s.causal, p.tokens, p.rows.length, page_rows, name_of(p.layout.type()),
      p.layout.value_offset() == 0, p.many_tokens, name_of(isa));
}

/// Products of bf16 pairs round queries to bf16, which the oracle does too, and each weight of the softmax,
/// by at most 2^-8: so much the output may move, and the log-sum-exp, whose sum is not rounded, not at all.
void check_all_isas(const Problem& p, std::int64_t page_rows) {
  const auto expected = test::plain_attention(p.shape, p.query_view(), p.rows);
  const Pages pages(p.layout, p.rows, page_rows);
  for (const Isa isa : test::supported_isas()) {
    const Result found = p.run(pages.view(), leaf_kernels(isa));
    if (attend_kernel(p.layout.type(), leaf_kernels(isa), p.shape.d_v).base_two) {
      Problem rounded = p;
      for (float& q : rounded.queries) q = test::rounded(q, DType::bf16);
      const auto answer = test::plain_attention(p.shape, rounded.query_view(), p.rows);
      expect_near(answer, found, describe(p, page_rows, isa), 0x1p-8, 2e-6);
    } else {
      expect_near(expected, found, describe(p, page_rows, isa));
    }
  }
}

/// Multiply-adds of a case, to keep the sweep short.
std::int64_t cost(const AttentionShape& s, std::int64_t tokens, std::int64_t length) {
  return s.h_q * tokens * length * (s.d_qk + s.d_v);
}

TEST(AttentionTest, MatchesItsDefinition) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> widths{{1, 1},     {5, 3},     {24, 12},  {64, 64},
                                                                  {192, 128}, {576, 512}, {288, 256}};
  // kv heads and query heads for each: MHA, GQA, MQA with a full, an odd and a spilling block of 16
  const std::vector<std::pair<std::int64_t, std::int64_t>> heads{{1, 1},  {3, 3},  {8, 8},  {6, 2},  {15, 5},
                                                                 {34, 2}, {40, 8}, {7, 1},  {16, 1}, {17, 1},
                                                                 {20, 1}, {33, 1}, {128, 1}};
  const std::vector<std::int64_t> lengths{0,   1,   2,   3,   31,  63,  64,  65,  127,
                                          129, 255, 256, 257, 512, 513, 700, 1030};
  Random random(1);
  for (const auto& [d_qk, d_v] : widths) {
    for (const std::int64_t length : lengths) {
      auto [h_q, h_kv] = random.pick(heads);
      std::int64_t tokens = 1 + random.below(5);
      AttentionShape shape{h_q, h_kv, d_qk, d_v, 1.0f, random.below(3) > 0};
      while (cost(shape, tokens, length) > 12'000'000) {
        if (tokens > 1)
          --tokens;
        else
          shape.h_q = shape.h_q / 2 / shape.h_kv * shape.h_kv;
        if (shape.h_q == 0) shape.h_q = shape.h_kv = 1;
      }
      const bool latent = shape.h_kv == 1 && random.below(2) > 0;
      const DType type = random.below(2) > 0 ? DType::bf16 : DType::f32;
      check_all_isas(Problem(shape, tokens, length, type, latent, random),
                     random.pick<std::int64_t>({1, 3, 64}));
    }
  }
}

TEST(AttentionTest, MatchesAtEveryHeadCount) {
  Random random(2);
  for (std::int64_t h = 1; h <= 128; h += h < 34 ? 1 : 13) {
    check_all_isas(Problem({h, 1, 24, 12, 1.0f, true}, 2, 66, DType::bf16, true, random), 64);
    check_all_isas(Problem({h, h, 5, 3, 1.0f, true}, 2, 66, DType::f32, false, random), 3);
  }
  check_all_isas(Problem({128, 1, 576, 512, 1.0f, true}, 1, 65, DType::bf16, true, random), 64);
  check_all_isas(Problem({127, 1, 24, 12, 1.0f, true}, 1, 300, DType::f32, true, random), 64);
}

TEST(AttentionTest, ManyTokensMatchTheDefinition) {
  const std::vector<std::pair<std::int64_t, std::int64_t>> widths{{1, 1}, {24, 12}, {64, 64}, {192, 128}};
  const std::vector<std::pair<std::int64_t, std::int64_t>> heads{{1, 1}, {3, 3}, {6, 2}, {7, 1}, {40, 8}};
  Random random(10);
  for (const auto& [d_qk, d_v] : widths) {
    for (const std::int64_t tokens : {0, 1, 7, 8, 9, 33, 129, 260}) {
      const auto [h_q, h_kv] =
          tokens > 100 ? std::pair<std::int64_t, std::int64_t>{3, 3} : random.pick(heads);
      const std::int64_t length = tokens + random.pick<std::int64_t>({-3, 0, 1, 40, 300});
      if (length < 0) continue;
      const AttentionShape shape{h_q, h_kv, d_qk, d_v, 1.0f, random.below(3) > 0};
      const DType type = random.below(2) > 0 ? DType::bf16 : DType::f32;
      Problem p(shape, tokens, length, type, h_kv == 1 && random.below(2) > 0, random);
      p.many_tokens = true;
      check_all_isas(p, random.pick<std::int64_t>({1, 3, 64, 1000}));
    }
  }
}

/// Integer scores up to 1000, rising, falling and mixed: the running maximum must move, and no exp may
/// overflow.
TEST(AttentionTest, LargeScoresStayExact) {
  for (const int order : {0, 1, 2}) {
    Random random(3);
    Problem p({2, 1, 1, 1, 1.0f, false}, 1, 600, DType::f32, false, random);
    p.shape.scale = 1.0f;
    p.queries[0] = 1.0f;
    p.queries[p.head_stride] = -1.0f;
    for (std::int64_t r = 0; r < 600; ++r) {
      const std::int64_t score = order == 0 ? r : order == 1 ? 600 - r : r * 271 % 600;
      p.rows.data[2 * r] = static_cast<float>(score) * 1.5f;
    }
    check_all_isas(p, 64);
  }
}

TEST(AttentionTest, QueriesThatSeeNothingGiveZeroAndInfinity) {
  Random random(4);
  for (const std::int64_t length : {0, 1, 3}) {
    const Problem p({4, 2, 5, 3, 1.0f, true}, 5, length, DType::f32, false, random);
    const Pages pages(p.layout, p.rows, 3);
    for (const Isa isa : test::supported_isas()) {
      const Result r = p.run(pages.view(), leaf_kernels(isa));
      for (std::int64_t t = 0; t < 5; ++t) {
        const bool sees = t >= 5 - length;
        for (std::int64_t h = 0; h < 4; ++h) EXPECT_EQ(std::isfinite(r.lse[t * 4 + h]), sees) << t;
        for (std::int64_t i = 0; i < 12; ++i) EXPECT_EQ(r.out[t * 12 + i] != 0.0f, sees) << t;
      }
    }
  }
  const Problem none({4, 2, 5, 3, 1.0f, false}, 2, 0, DType::bf16, false, random);
  const Pages pages(none.layout, none.rows, 64);
  const Result r = none.run(pages.view());
  EXPECT_TRUE(std::all_of(r.out.begin(), r.out.end(), [](float x) { return x == 0.0f; }));
  EXPECT_TRUE(std::all_of(r.lse.begin(), r.lse.end(), [](float x) { return x == infinity; }));
}

TEST(AttentionTest, NanBeyondAQuerysSightNeverReachesIt) {
  Random random(5);
  for (const std::int64_t length : {5, 64, 65, 258, 514}) {
    Problem p({17, 1, 24, 12, 1.0f, true}, 5, length, DType::f32, true, random);
    const Pages clean(p.layout, p.rows, 3);
    std::fill(p.rows.data.end() - 4 * p.rows.width, p.rows.data.end(), nan);
    const Pages poisoned(p.layout, p.rows, 3);
    for (const Isa isa : test::supported_isas()) {
      const Result a = p.run(p.query_view(), clean.view(), leaf_kernels(isa)),
                   b = p.run(poisoned.view(), leaf_kernels(isa));
      EXPECT_EQ(0, std::memcmp(a.out.data(), b.out.data(), 17 * 12 * 4)) << length;
      EXPECT_EQ(0, std::memcmp(a.lse.data(), b.lse.data(), 17 * 4)) << length;
      EXPECT_TRUE(std::isnan(b.out[17 * 12])) << "the second query does see the row";
    }
  }
}

class AttentionBitsTest : public testing::Test {
 protected:
  std::vector<Problem> problems() const {
    Random random(6);
    std::vector<Problem> all;
    for (const std::int64_t length : {1, 65, 256, 257, 700, 1300}) {
      all.emplace_back(AttentionShape{20, 1, 40, 32, 1.0f, true}, 8, length, DType::bf16, true, random);
      all.emplace_back(AttentionShape{6, 3, 24, 12, 1.0f, false}, 8, length, DType::f32, false, random);
      all.emplace_back(AttentionShape{1, 1, 5, 3, 1.0f, true}, 8, length, DType::f32, false, random);
    }
    // Splits grow behind 8192 rows, in the middle of these queries; five, six, seven heads fill groups of all
    // kinds.
    for (const std::int64_t heads : {5, 6, 7, 11})
      all.emplace_back(AttentionShape{heads, 1, 24, 8, 1.0f, true}, 6, 8195, DType::bf16, true, random);
    for (const auto& [h_q, h_kv] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {6, 2}, {5, 1}}) {
      for (const DType type : {DType::bf16, DType::f32}) {
        all.emplace_back(AttentionShape{h_q, h_kv, 24, 8, 1.0f, true}, 13, 700, type, false, random);
        all.back().many_tokens = true;
      }
    }
    return all;
  }

 private:
  test::Threads restored_{1};
};

TEST_F(AttentionBitsTest, SameAtAnyPageSizeThreadCountAndRepeat) {
  for (const Problem& p : problems()) {
    const Pages reference(p.layout, p.rows, 64);
    for (const Isa isa : test::supported_isas()) {
      set_threads(1);
      const Result expected = p.run(reference.view(), leaf_kernels(isa));
      for (const std::int64_t page_rows : {1, 3, 64, 1000}) {
        const Pages pages(p.layout, p.rows, page_rows);
        for (const int count : {1, 2, 3}) {
          set_threads(count);
          EXPECT_EQ(expected, p.run(pages.view(), leaf_kernels(isa)))
              << describe(p, page_rows, isa) << " threads " << count;
        }
      }
    }
  }
}

TEST_F(AttentionBitsTest, SameAloneAsInABatch) {
  for (Problem& p : problems()) {
    const Pages whole(p.layout, p.rows, 64);
    for (const int count :
         {1, 3}) {  // few queries over many rows take another path when there are threads to feed
      set_threads(count);
      const Result batch = p.run(whole.view());
      for (std::int64_t t = 0; t < p.tokens; ++t) {
        KvView seen = whole.view();
        if (p.shape.causal) seen.length = std::max(std::int64_t{0}, seen.length - (p.tokens - 1 - t));
        const Result alone = p.run(p.query_view(t, 1), seen);
        const std::int64_t n = p.shape.h_q * p.shape.d_v;
        EXPECT_EQ(0, std::memcmp(alone.out.data(), batch.out.data() + t * n, static_cast<std::size_t>(n) * 4))
            << describe(p, 64, selected_isa()) << " token " << t;
        EXPECT_EQ(0, std::memcmp(alone.lse.data(), batch.lse.data() + t * p.shape.h_q,
                                 static_cast<std::size_t>(p.shape.h_q) * 4));
      }
    }
  }
}

TEST_F(AttentionBitsTest, SameInACallOfManySequencesAsAlone) {
  const std::vector<std::int64_t> lengths{1300, 1, 0, 64, 513, 9000, 700};
  for (const DType type : {DType::bf16, DType::f32}) {
    Random random(9);
    const AttentionShape shape{20, 1, 40, 32, 1.0f, true};
    std::vector<Problem> problems;
    std::vector<std::unique_ptr<Pages>> pages;
    for (const std::int64_t length : lengths) {
      const Problem& p = problems.emplace_back(shape, 2, length, type, true, random);
      pages.push_back(std::make_unique<Pages>(p.layout, p.rows, 64));
    }
    for (const int count : {1, 2, 3}) {
      set_threads(count);
      std::vector<Result> found;
      for (const Problem& p : problems) found.push_back(p.empty(2));
      std::vector<AttentionSequence> calls;
      for (std::size_t i = 0; i < problems.size(); ++i)
        calls.push_back(
            {problems[i].query_view(), pages[i]->view(), found[i].out.data(), found[i].lse.data()});
      attend(problems[0].shape, calls);
      for (std::size_t i = 0; i < problems.size(); ++i) {
        EXPECT_EQ(problems[i].run(pages[i]->view()), found[i])
            << name_of(type) << " sequence of " << lengths[i] << " rows, threads " << count;
      }
    }
  }
  attend({20, 1, 40, 32, 1.0f, true}, std::span<const AttentionSequence>{});  // none at all
}

TEST_F(AttentionBitsTest, SameWhereverHeadsLie) {
  int seen = 0;
  for (const Problem& p : problems()) {
    if (p.shape.h_kv == 1) continue;
    const Pages together(p.layout, p.rows, 64);
    const Result expected = p.run(together.view());
    for (const std::int64_t page_rows : {p.rows.length, std::int64_t{8}, std::int64_t{5}, std::int64_t{1}}) {
      const test::HeadsApart apart(together.view(), p.shape.h_kv, page_rows);
      EXPECT_EQ(expected, p.run(apart.view())) << describe(p, page_rows, selected_isa());
      ++seen;
    }
  }
  EXPECT_EQ(seen, 4 * 8);
}

/// Parts are merged one after another, a whole sequence's splits as a tree: the same for up to three.
TEST_F(AttentionBitsTest, SameInPartsAsWhole) {
  constexpr std::int64_t part_rows = OnlineAttention::part_rows;
  for (Problem p : problems()) {
    if (p.rows.length > 3 * part_rows || p.many_tokens) continue;
    p.many_tokens = true;  // as parts are
    const Pages whole(p.layout, p.rows, 64);
    const Result expected = p.run(whole.view());
    Result found = p.empty(p.tokens);
    Buffer<float> sums;
    OnlineAttention attention(p.shape, p.query_view(), p.rows.length, found.out.data(), sums);
    for (std::int64_t first = 0; first < p.rows.length; first += part_rows) {
      KvView part = whole.view();
      part.pages += first / part.page_rows;
      part.length = std::min(part_rows, p.rows.length - first);
      attention.add(part, first);
    }
    attention.finish(found.lse.data());
    EXPECT_EQ(expected, found) << describe(p, 64, selected_isa());
  }
}

TEST(AttentionTest, PartsComeInOrder) {
  constexpr std::int64_t part_rows = OnlineAttention::part_rows;
  Random random(9);
  const Problem p({3, 1, 5, 3, 1.0f, true}, 2, 2 * part_rows, DType::f32, false, random);
  const Pages pages(p.layout, p.rows, part_rows);
  Result r = p.empty(2);
  Buffer<float> sums;
  OnlineAttention attention(p.shape, p.query_view(), p.rows.length, r.out.data(), sums);
  KvView part = pages.view();
  part.length = part_rows;
  const auto error = [&](std::int64_t first) { return test::error_of([&] { attention.add(part, first); }); };
  EXPECT_NE(error(part_rows).find("begins at row 512, expected 0"), std::string::npos) << error(part_rows);
  EXPECT_EQ(error(0), "");
  EXPECT_NE(error(0).find("begins at row 0, expected 512"), std::string::npos) << error(0);
}

TEST(AttentionTest, LogSumExpMayBeLeftOut) {
  Random random(7);
  const Problem p({3, 1, 5, 3, 1.0f, true}, 2, 70, DType::f32, false, random);
  const Pages pages(p.layout, p.rows, 64);
  Result found = p.empty(2);
  attend(p.shape, p.query_view(), pages.view(), found.out.data(), nullptr);
  EXPECT_EQ(found.out, p.run(pages.view()).out);
}

TEST(AttentionTest, RefusesWhatIsNotAShape) {
  Random random(8);
  const Problem p({4, 2, 5, 3, 1.0f, true}, 1, 5, DType::f32, false, random);
  const Pages pages(p.layout, p.rows, 3);
  const AttentionShape wrong[] = {{0, 1, 5, 3}, {4, 0, 5, 3}, {4, 3, 5, 3},
                                  {4, 2, 0, 3}, {4, 2, 5, 0}, {-4, -2, 5, 3}};
  Result r = p.empty(1);
  for (const AttentionShape& shape : wrong) {
    EXPECT_NE(test::error_of([&] { attend(shape, p.query_view(), pages.view(), r.out.data(), nullptr); }),
              "");
  }
  Buffer<float> sums;
  OnlineAttention attention(p.shape, p.query_view(), 5, r.out.data(), sums);
  EXPECT_NE(test::error_of([&] { attention.add(pages.view(), 100); }), "");
  KvView other = pages.view();
  other.type = DType::i8;
  EXPECT_NE(test::error_of([&] { attention.add(other, 0); }).find("int8"), std::string::npos);
}

}  // namespace
}  // namespace mla
