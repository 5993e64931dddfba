// Attention over fp8 and int8 latents against its definition on the decoded rows, and bit by bit its
// invariances.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "mla/attention/attention.h"
#include "support/attention_problem.h"
#include "support/latent_pages.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::LatentPages;
using test::Random;
using test::Result;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

struct Problem {
  AttentionShape shape;
  std::int64_t tokens, length;
  RowLayout layout;
  std::vector<float> queries, rows;

  Problem(std::int64_t heads, std::int64_t d_c, std::int64_t d_r, std::int64_t tokens_, std::int64_t length_,
          DType type, Random& random, bool causal = true)
      : shape{heads, 1, d_c + d_r, d_c, 1 / std::sqrt(static_cast<float>(d_c + d_r)), causal},
        tokens(tokens_),
        length(length_),
        layout(RowLayout::latent(d_c, d_r, type)),
        queries(random.values(tokens * heads * (d_c + d_r))),
        rows(random.values(length * (d_c + d_r))) {}

  QueryView query_view(std::int64_t first = 0, std::int64_t count = -1) const {
    const std::int64_t stride = shape.h_q * shape.d_qk;
    return {queries.data() + first * stride, count < 0 ? tokens : count, stride, shape.d_qk};
  }
  Result run(const KvView& view, const LeafKernels& leaf = leaf_kernels()) const {
    return run(query_view(), view, leaf);
  }
  Result run(const QueryView& q, const KvView& view, const LeafKernels& leaf = leaf_kernels()) const {
    Result r{std::vector<float>(static_cast<std::size_t>(q.tokens * shape.h_q * shape.d_v), nan),
             std::vector<float>(static_cast<std::size_t>(q.tokens * shape.h_q), nan)};
    attend(shape, q, view, r.out.data(), r.lse.data(), leaf);
    return r;
  }
  test::PlainRows decoded(const KvView& view) const {
    test::PlainRows plain{std::vector<float>(static_cast<std::size_t>(length * shape.d_qk)), length,
                          shape.d_qk, 0, shape.d_qk};
    for (std::int64_t r = 0; r < length; ++r)
      layout.read(view.row(r), shape.d_qk, plain.data.data() + r * shape.d_qk);
    return plain;
  }
  std::string name() const {
    return fmt::format("{} heads {} of {}+{} tokens {} rows {} causal {}", name_of(layout.type()), shape.h_q,
                       shape.d_v, shape.d_qk - shape.d_v, tokens, length, shape.causal);
  }
};

/// Largest error of `found` relative to sum p |v|, and of the log-sum-exp; NaN counts as infinite.
struct Errors {
  double out = 0, lse = 0;
};
Errors errors_of(const test::AttentionAnswer& expected, const Result& found) {
  Errors e;
  const auto raise = [](double& worst, double error) { worst = error <= worst ? worst : error; };
  for (std::size_t i = 0; i < expected.out.size(); ++i) {
    const double error = std::abs(expected.out[i] - found.out[i]);
    raise(e.out, expected.weight[i] == 0 ? error : error / expected.weight[i]);
  }
  for (std::size_t i = 0; i < expected.lse.size(); ++i) {
    if (std::isinf(expected.lse[i]) && std::isinf(found.lse[i])) continue;
    raise(e.lse, std::abs(expected.lse[i] - found.lse[i]));
  }
  return e;
}

/// fp8 rows decode to bf16 exactly: attention over them is that over the decoded rows, bit by bit.
void check_as_bf16(const Problem& p, const KvView& view, const Result& found, const LeafKernels& leaf,
                   const std::string& where) {
  const RowLayout layout = RowLayout::latent(p.shape.d_v, p.shape.d_qk - p.shape.d_v, DType::bf16);
  const LatentPages decoded(layout, p.decoded(view).data, p.length, 64);
  EXPECT_EQ(p.run(decoded.view(), leaf), found) << where;
}

/// Attention by products of bytes, in double: queries rounded to 127 steps of their largest magnitude,
/// rotated parts of queries to bf16 of such steps. Weights are not rounded; by how much rounding them may
/// move a sum of values is given beside it.
struct RoundedAnswer {
  test::AttentionAnswer exact;
  std::vector<double> allowance;  // [tokens][heads][d_v]
  std::vector<double> of_scores;  // [tokens][heads]
};
RoundedAnswer with_rounded_queries(Problem p, const test::PlainRows& rows) {
  const std::int64_t d_c = p.shape.d_v, d_qk = p.shape.d_qk;
  std::vector<double> of_scores;
  for (std::int64_t i = 0; i < p.tokens * p.shape.h_q; ++i) {
    float* q = p.queries.data() + i * d_qk;
    float top = 0;
    for (std::int64_t j = 0; j < d_c; ++j) top = std::max(top, std::abs(q[j]));
    const float step = top / 127.0f;
    of_scores.push_back(static_cast<double>((d_qk - d_c) / 2 + 1) * step * p.shape.scale);
    for (std::int64_t j = 0; j < d_qk; ++j) {
      const float steps = q[j] * (1.0f / step);
      q[j] = (j < d_c ? std::rint(steps) : test::rounded(steps, DType::bf16)) * step;
    }
  }
  RoundedAnswer answer{test::plain_attention(p.shape, p.query_view(), rows), {}, of_scores};
  answer.allowance.assign(answer.exact.out.size(), 0.0);
  std::vector<double> score(static_cast<std::size_t>(p.length)), step(static_cast<std::size_t>(p.length));
  for (std::int64_t r = 0; r < p.length; ++r) {
    float top = 0;
    for (std::int64_t j = 0; j < d_c; ++j) top = std::max(top, std::abs(rows.key(r, 0)[j]));
    step[r] = static_cast<double>(top) / 127;
  }
  const double largest_step = p.length > 0 ? *std::max_element(step.begin(), step.end()) : 0;
  for (double& error : answer.of_scores) error = error * largest_step + 4e-6;
  for (std::int64_t i = 0; i < p.tokens * p.shape.h_q; ++i) {
    const std::int64_t token = i / p.shape.h_q;
    const std::int64_t seen =
        p.shape.causal ? std::clamp<std::int64_t>(p.length - p.tokens + token + 1, 0, p.length) : p.length;
    for (std::int64_t first = 0; first < seen; first += 256) {  // the rows that share a largest weight
      const std::int64_t end = std::min(first + 256, seen);
      double largest = 0;
      for (std::int64_t r = first; r < end; ++r) {
        double s = 0;
        for (std::int64_t j = 0; j < d_qk; ++j)
          s += static_cast<double>(p.queries[i * d_qk + j]) * rows.key(r, 0)[j];
        largest = std::max(largest, std::exp(s * p.shape.scale - answer.exact.lse[i]) * step[r]);
      }
      for (std::int64_t j = 0; j < d_c; ++j) {
        double codes = 0;
        for (std::int64_t r = first; r < end; ++r) codes += std::abs(rows.key(r, 0)[j]) / step[r];
        answer.allowance[i * d_c + j] += 0.501 / 255 * largest * codes;
      }
    }
  }
  return answer;
}

void check_products_of_bytes(const Problem& p, const test::PlainRows& rows, const Result& found,
                             const std::string& where) {
  const RoundedAnswer expected = with_rounded_queries(p, rows);
  for (std::size_t i = 0; i < found.lse.size(); ++i) {
    if (std::isinf(expected.exact.lse[i])) {
      EXPECT_EQ(found.lse[i], expected.exact.lse[i]) << where;
    } else {
      EXPECT_LE(std::abs(found.lse[i] - expected.exact.lse[i]), expected.of_scores[i]) << where;
    }
  }
  for (std::size_t i = 0; i < found.out.size(); ++i) {
    const double of_scores = expected.of_scores[i / static_cast<std::size_t>(p.shape.d_v)];
    ASSERT_LE(std::abs(found.out[i] - expected.exact.out[i]),
              1.01 * expected.allowance[i] + 2 * of_scores * expected.exact.weight[i])
        << where << " output " << i;
  }
}

void check_all_isas(const Problem& p, std::int64_t page_rows, bool only_base_two = false) {
  const LatentPages pages(p.layout, p.rows, p.length, page_rows);
  const test::PlainRows rows = p.decoded(pages.view());
  const auto expected = test::plain_attention(p.shape, p.query_view(), rows);
  for (const Isa isa : test::supported_isas()) {
    const Result found = p.run(pages.view(), leaf_kernels(isa));
    const std::string where = fmt::format("{} pages {} {}", p.name(), page_rows, name_of(isa));
    const bool base_two = attend_kernel(p.layout.type(), leaf_kernels(isa), p.shape.d_v).base_two;
    if (only_base_two && !base_two) continue;
    if (!base_two) {
      const Errors e = errors_of(expected, found);
      EXPECT_LE(e.out, 3e-6) << where;  // sums of up to 704 products, see attention_test.cpp
      EXPECT_LE(e.lse, 4e-6) << where;
    } else if (p.layout.type() == DType::f8_e4m3) {
      check_as_bf16(p, pages.view(), found, leaf_kernels(isa), where);
    } else if (p.shape.d_v <= 512) {
      check_products_of_bytes(p, rows, found, where);
    } else {  // too wide for that
      EXPECT_LE(errors_of(expected, found).out, 3e-6) << where;
    }
  }
}

const std::vector<DType> types{DType::f8_e4m3, DType::i8};

TEST(QuantisedAttentionTest, MatchesItsDefinitionOnTheDecodedRows) {
  Random random(1);
  const std::vector<std::pair<std::int64_t, std::int64_t>> widths{{1, 0},   {3, 2},    {12, 12},  {64, 16},
                                                                  {129, 5}, {256, 32}, {512, 64}, {640, 64}};
  for (const DType type : types) {
    for (const auto& [d_c, d_r] : widths) {
      for (const std::int64_t length : {0, 1, 2, 5, 63, 64, 65, 130, 255, 257, 513, 700}) {
        const std::int64_t most = std::max<std::int64_t>(1, 4'000'000 / (d_c * (length + 1)));
        const std::int64_t tokens = 1 + random.below(std::min<std::int64_t>(4, most));
        const std::int64_t heads =
            1 + random.below(std::min<std::int64_t>(24, std::max<std::int64_t>(1, most / tokens)));
        check_all_isas(Problem(heads, d_c, d_r, tokens, length, type, random, random.below(3) > 0),
                       random.pick<std::int64_t>({1, 3, 6, 64}));
      }
    }
  }
}

TEST(QuantisedAttentionTest, MatchesAtEveryHeadCount) {
  Random random(2);
  for (const DType type : types) {
    for (std::int64_t heads = 1; heads <= 25; ++heads) {
      check_all_isas(Problem(heads, 24, 12, 2, 66, type, random), 64);
      check_all_isas(Problem(heads, 32, 8, 2, 66, type, random), 64);
    }
    check_all_isas(Problem(127, 64, 16, 1, 70, type, random), 3);
    check_all_isas(Problem(128, 64, 16, 3, 300, type, random), 64);
  }
}

TEST(QuantisedAttentionTest, QueriesThatSeeNothingGiveZeroAndInfinity) {
  Random random(3);
  for (const DType type : types) {
    for (const std::int64_t length : {0, 1, 3}) {
      const Problem p(4, 5, 3, 5, length, type, random);
      const LatentPages pages(p.layout, p.rows, length, 3);
      for (const Isa isa : test::supported_isas()) {
        const Result r = p.run(pages.view(), leaf_kernels(isa));
        for (std::int64_t t = 0; t < 5; ++t) {
          const bool sees = t >= 5 - length;
          for (std::int64_t h = 0; h < 4; ++h) EXPECT_EQ(std::isfinite(r.lse[t * 4 + h]), sees);
          for (std::int64_t i = 0; i < 20; ++i) EXPECT_TRUE(sees || r.out[t * 20 + i] == 0.0f);
        }
      }
    }
  }
}

TEST(QuantisedAttentionTest, NanShowsWhereItIsSeenAndNowhereElse) {
  Random random(4);
  struct Width {
    std::int64_t d_c, d_r;
  };
  // In both blocks of fp8, and in the rotated key; whole blocks are expanded between products.
  for (const auto& [d_c, d_r] : {Width{130, 12}, Width{256, 32}}) {
    for (const DType type : types) {
      for (const std::int64_t column : {std::int64_t{0}, d_c / 2 + 5, d_c - 1, d_c + 10}) {
        for (const std::int64_t length : {5, 64, 65, 258, 514}) {
          const std::int64_t heads = 17;
          Problem p(heads, d_c, d_r, 5, length, type, random);
          const LatentPages clean(p.layout, p.rows, length, 3);
          p.rows[(length - 4) * p.shape.d_qk + column] = nan;
          const LatentPages poisoned(p.layout, p.rows, length, 3);
          for (const Isa isa : test::supported_isas()) {
            const Result a = p.run(clean.view(), leaf_kernels(isa)),
                         b = p.run(poisoned.view(), leaf_kernels(isa));
            // The kernel of bf16 pairs takes rows that only others see times 0, which is NaN for a NaN.
            const bool is_apart = type == DType::i8 || !attend_kernel(type, leaf_kernels(isa), d_c).base_two;
            if (is_apart) {
              const auto size = static_cast<std::size_t>(heads);
              EXPECT_EQ(0, std::memcmp(a.out.data(), b.out.data(), size * static_cast<std::size_t>(d_c) * 4))
                  << p.name();
              EXPECT_EQ(0, std::memcmp(a.lse.data(), b.lse.data(), size * 4)) << p.name();
            }
            for (std::int64_t i = heads * d_c; i < 5 * heads * d_c; ++i)
              ASSERT_TRUE(std::isnan(b.out[i])) << p.name() << " " << name_of(isa) << " " << i;
          }
        }
      }
    }
  }
}

/// Scores that grow from tile to tile, so that what they are relative to moves again and again, and of some
/// queries only. They are too large for the tolerances of f32 arithmetic, which has no tiles.
TEST(QuantisedAttentionTest, MatchesWhereScoresGrow) {
  Random random(5);
  for (const DType type : types) {
    for (const std::int64_t heads : {8, 17, 24}) {
      Problem p(heads, 128, 32, 1, 1500, type, random);
      for (std::int64_t r = 0; r < p.length; ++r)
        for (std::int64_t j = 0; j < p.shape.d_qk; ++j)
          p.rows[r * p.shape.d_qk + j] *= 1 + static_cast<float>(r / 256) * 4;
      for (std::int64_t i = 0; i < p.shape.d_qk; ++i) p.queries[i] = 0;  // a query that stays
      p.queries[0] = 1e-3f;
      check_all_isas(p, 64, true);
    }
  }
}

class QuantisedAttentionBitsTest : public testing::Test {
 protected:
  std::vector<Problem> problems() const {
    Random random(6);
    std::vector<Problem> all;
    for (const DType type : types) {
      for (const std::int64_t length : {1, 65, 257, 700, 1300}) {
        all.emplace_back(20, 48, 8, 8, length, type, random);
        all.emplace_back(24, 40, 7, 2, length, type, random);
        all.emplace_back(13, 130, 6, 8, length, type, random);
        all.emplace_back(1, 5, 0, 8, length, type, random, false);
      }
    }
    return all;
  }

 private:
  test::Threads restored_{1};
};

TEST_F(QuantisedAttentionBitsTest, SameAtAnyPageSizeThreadCountAndRepeat) {
  for (const Problem& p : problems()) {
    const LatentPages reference(p.layout, p.rows, p.length, 64);
    for (const Isa isa : test::supported_isas()) {
      set_threads(1);
      const Result expected = p.run(reference.view(), leaf_kernels(isa));
      for (const std::int64_t page_rows : {1, 3, 64, 1000}) {
        const LatentPages pages(p.layout, p.rows, p.length, page_rows);
        for (const int count : {1, 2, 3}) {
          set_threads(count);
          EXPECT_EQ(expected, p.run(pages.view(), leaf_kernels(isa)))
              << p.name() << " " << page_rows << " " << count;
        }
      }
    }
  }
}

TEST_F(QuantisedAttentionBitsTest, SameAloneAsInABatch) {
  for (const Problem& p : problems()) {
    const LatentPages whole(p.layout, p.rows, p.length, 64);
    for (const Isa isa : test::supported_isas()) {
      const Result batch = p.run(whole.view(), leaf_kernels(isa));
      for (std::int64_t t = 0; t < p.tokens; ++t) {
        KvView seen = whole.view();
        if (p.shape.causal) seen.length = std::max(std::int64_t{0}, seen.length - (p.tokens - 1 - t));
        const Result alone = p.run(p.query_view(t, 1), seen, leaf_kernels(isa));
        const std::int64_t n = p.shape.h_q * p.shape.d_v;
        EXPECT_EQ(0, std::memcmp(alone.out.data(), batch.out.data() + t * n, static_cast<std::size_t>(n) * 4))
            << p.name() << " token " << t << " " << name_of(isa);
        EXPECT_EQ(0, std::memcmp(alone.lse.data(), batch.lse.data() + t * p.shape.h_q,
                                 static_cast<std::size_t>(p.shape.h_q) * 4));
      }
    }
  }
}

/// As where rows of whole KiB lie a line further apart (PagePool).
TEST(QuantisedAttentionTest, RowsMayLieApart) {
  Random random(10);
  for (const DType type : types) {
    for (const auto& [d_c, d_r] : {std::pair<std::int64_t, std::int64_t>{880, 64}, {960, 16}, {130, 12}}) {
      const Problem p(17, d_c, d_r, 2, 77, type, random);
      for (const std::int64_t page_rows : {5, 64}) {
        const LatentPages close(p.layout, p.rows, p.length, page_rows);
        const LatentPages apart(p.layout, p.rows, p.length, page_rows, 64);
        for (const Isa isa : test::supported_isas())
          EXPECT_EQ(p.run(close.view(), leaf_kernels(isa)), p.run(apart.view(), leaf_kernels(isa)))
              << p.name();
      }
    }
  }
}

TEST(QuantisedAttentionTest, TellsTheLargestScoreOfFp8) {
  Random random(11);
  for (const auto& [d_c, d_r] : {std::pair<std::int64_t, std::int64_t>{256, 32}, {130, 12}}) {
    const Problem p(9, d_c, d_r, 3, 600, DType::f8_e4m3, random);
    const LatentPages pages(p.layout, p.rows, p.length, 64);
    const auto expected = test::plain_attention(p.shape, p.query_view(), p.decoded(pages.view()));
    for (const Isa isa : test::supported_isas()) {
      Result r = p.run(pages.view(), leaf_kernels(isa));
      std::vector<float> largest(r.lse.size(), nan);
      const AttentionSequence one{p.query_view(), pages.view(), r.out.data(), r.lse.data(), largest.data()};
      attend(p.shape, {&one, 1}, leaf_kernels(isa));
      for (std::size_t i = 0; i < largest.size(); ++i)
        EXPECT_NEAR(largest[i], expected.largest[i], 0.02) << p.name() << " " << name_of(isa) << " " << i;
    }
  }
}

TEST(QuantisedAttentionTest, RefusesShapesThatAreNotItsLatents) {
  Random random(8);
  for (const DType type : types) {
    const Problem p(4, 8, 4, 1, 5, type, random);
    const LatentPages pages(p.layout, p.rows, 5, 3);
    Result r = p.run(pages.view());
    r.out.resize(100);
    for (const AttentionShape& shape :
         {AttentionShape{4, 2, 12, 8}, AttentionShape{4, 1, 12, 7}, AttentionShape{4, 1, 8, 9}}) {
      const std::string error =
          test::error_of([&] { attend(shape, p.query_view(), pages.view(), r.out.data(), nullptr); });
      EXPECT_NE(error.find(name_of(type)), std::string::npos) << error;
    }
  }
}

}  // namespace
}  // namespace mla
