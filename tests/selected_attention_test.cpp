// Sparse attention against its definition on the rows that queries select, and bit by bit its invariances.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mla/attention/selected.h"
#include "mla/kernels/latent_row.h"
#include "support/attention_problem.h"

namespace mla {
namespace {

using test::infinity;
using test::nan;
using test::Random;

/// A table of random rows, NaN in the gaps of its pages, and the values that its rows decode to.
struct Table {
  std::vector<std::byte> memory;
  RowTable table;
  std::vector<float> values;  // [rows][width]

  Table(RowFormat format, std::int64_t pages, std::int64_t page_rows, std::int64_t width, Random& random) {
    const bool is_584 = format == RowFormat::fp8_584;
    const std::int64_t row = format == RowFormat::f32       ? 4 * width
                             : format == RowFormat::fp8_656 ? 656
                             : is_584                       ? 584
                                                            : 2 * width;
    const std::int64_t gap = is_584 ? 0 : 32, page = page_rows * (row + gap) + 64;
    memory.assign(static_cast<std::size_t>(pages * page), std::byte{0xff});
    table = {format, memory.data(), pages, page_rows, page, row + gap, width};
    values = random.values(pages * page_rows * width, 0.5);
    for (std::int64_t r = 0; r < table.rows(); ++r) write(r, r / page_rows * page, r % page_rows);
  }

 private:
  void write(std::int64_t r, std::int64_t page, std::int64_t slot) {
    const std::int64_t width = table.width;
    float* from = values.data() + r * width;
    std::byte* to = memory.data() + page + slot * table.row_bytes;
    if (table.format == RowFormat::f32)
      return void(std::memcpy(to, from, static_cast<std::size_t>(4 * width)));
    if (table.format == RowFormat::fp8_656) {  // our own rows of 512 + 64 are such rows
      const LatentRow at = latent_row(DType::f8_e4m3, 512, 64);
      encode_latent(DType::f8_e4m3, at, from, to);
      return decode_latent(DType::f8_e4m3, at, to, width, from, scalar_kernels);
    }
    if (table.format == RowFormat::fp8_584) {
      to = memory.data() + page + slot * 576;
      std::byte* scales = memory.data() + page + table.page_rows * 576 + slot * 8;
      for (int block = 0; block < 7; ++block) {
        const int exponent = -9 + block;
        scales[block] = static_cast<std::byte>(127 + exponent);
        for (int i = 64 * block; i < 64 * block + 64; ++i) {
          const std::uint8_t code = to_f8_e4m3(std::ldexp(from[i], -exponent));
          to[i] = static_cast<std::byte>(code);
          from[i] = std::ldexp(f8_e4m3_to_float(code), exponent);
        }
      }
      from += 448;
      to += 448;
    }
    for (std::int64_t i = 0; i < (table.format == RowFormat::fp8_584 ? 64 : width); ++i) {
      const bool is_half = table.format == RowFormat::f16;
      const std::uint16_t bits = is_half ? to_f16(from[i]) : to_bf16(from[i]).bits;
      std::memcpy(to + 2 * i, &bits, 2);
      from[i] = is_half ? f16_to_float(bits) : to_float(bf16{bits});
    }
  }
};

struct Answers {
  std::vector<float> out, lse, largest;
  bool operator==(const Answers&) const = default;
};

struct Problem {
  AttentionShape shape;
  std::int64_t tokens;
  std::vector<float> heads;
  std::vector<std::vector<std::int32_t>> indices, more;

  Answers run(const Table& table, const Table* other, std::int64_t first, std::int64_t count) const {
    const std::int64_t d = shape.d_qk, h = shape.h_q;
    Answers a{std::vector<float>(count * h * shape.d_v, nan), std::vector<float>(count * h, nan),
              std::vector<float>(count * h, nan)};
    std::vector<SelectedQuery> queries;
    for (std::int64_t t = 0; t < count; ++t) {
      const auto selection = [&](const Table* from, const std::vector<std::int32_t>& ids) {
        return from ? Selection{&from->table, ids.data(), std::ssize(ids)} : Selection{};
      };
      queries.push_back({heads.data() + (first + t) * h * d, d, selection(&table, indices[first + t]),
                         selection(other, more[first + t]), a.out.data() + t * h * shape.d_v,
                         a.lse.data() + t * h, a.largest.data() + t * h});
    }
    attend_selected(shape, queries);
    return a;
  }
};

Problem problem(std::int64_t h, std::int64_t d, std::int64_t d_v, std::int64_t tokens, const Table& table,
                const Table* other, Random& random, std::int64_t most = 200) {
  Problem p{{h, 1, d, d_v, 0.05f, false}, tokens, random.values(tokens * h * d), {}, {}};
  for (float& x : p.heads) x = to_float(to_bf16(x));
  const std::vector<std::int32_t> nonsense{-1, -2147483647 - 1, 2147483647,
                                           static_cast<std::int32_t>(table.table.rows())};
  const auto pick = [&](const Table& from, std::int64_t count) {
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < count; ++i)
      ids.push_back(random.below(5) == 0 ? random.pick(nonsense)
                                         : static_cast<std::int32_t>(random.below(from.table.rows())));
    return ids;
  };
  for (std::int64_t t = 0; t < tokens; ++t) {
    p.indices.push_back(pick(table, t == 1 ? 0 : most - random.below(200)));
    p.more.push_back(other ? pick(*other, random.below(50)) : std::vector<std::int32_t>{});
  }
  return p;
}

void expect_definition(const Problem& p, const Table& table, const Table* other, const Answers& found,
                       double tolerance) {
  const std::int64_t d = p.shape.d_qk, h = p.shape.h_q, d_v = p.shape.d_v;
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    test::PlainRows rows{{}, 0, d, 0, d};
    const auto add = [&](const Table& from, const std::vector<std::int32_t>& ids) {
      for (const std::int32_t id : ids) {
        if (id < 0 || id >= from.table.rows()) continue;
        rows.data.insert(rows.data.end(), from.values.data() + id * d, from.values.data() + (id + 1) * d);
        ++rows.length;
      }
    };
    add(table, p.indices[t]);
    if (other) add(*other, p.more[t]);
    const auto expected = test::plain_attention(p.shape, {p.heads.data() + t * h * d, 1, 0, d}, rows);
    for (std::int64_t i = 0; i < h * d_v; ++i)
      ASSERT_NEAR(found.out[t * h * d_v + i], expected.out[i], tolerance * (1e-3 + expected.weight[i])) << t;
    for (std::int64_t i = 0; i < h; ++i) {
      double largest = -infinity;
      for (std::int64_t r = 0; r < rows.length; ++r) {
        double score = 0;
        for (std::int64_t c = 0; c < d; ++c)
          score += static_cast<double>(p.heads[(t * h + i) * d + c]) * rows.key(r, 0)[c];
        largest = std::max(largest, score * p.shape.scale);
      }
      if (rows.length == 0) {
        EXPECT_EQ(found.lse[t * h + i], infinity);
        EXPECT_EQ(found.largest[t * h + i], -infinity);
      } else {
        ASSERT_NEAR(found.lse[t * h + i], expected.lse[i], 2e-5) << t;
        ASSERT_NEAR(found.largest[t * h + i], largest, 2e-5) << t;
      }
    }
  }
}

TEST(SelectedAttentionTest, MatchesItsDefinition) {
  Random random(1);
  const struct {
    RowFormat format;
    std::int64_t width, d_v;
    double tolerance;  // of the sum of weights times values; weights are rounded to bf16 over rows of bf16
  } cases[] = {{RowFormat::f32, 96, 64, 1e-5},      {RowFormat::f32, 7, 7, 1e-5},
               {RowFormat::f16, 96, 64, 1e-5},      {RowFormat::bf16, 576, 512, 1e-2},
               {RowFormat::bf16, 512, 512, 1e-2},   {RowFormat::fp8_656, 576, 512, 1e-2},
               {RowFormat::fp8_584, 512, 512, 1e-2}};
  for (const auto& c : cases) {
    for (const std::int64_t page_rows : {1, 5, 64}) {
      const Table table(c.format, 9, page_rows, c.width, random), other(c.format, 3, 7, c.width, random);
      for (const Table* second : {static_cast<const Table*>(nullptr), &other}) {
        const Problem p = problem(5, c.width, c.d_v, 4, table, second, random);
        SCOPED_TRACE(static_cast<int>(c.format));
        expect_definition(p, table, second, p.run(table, second, 0, p.tokens), c.tolerance);
      }
    }
  }
}

TEST(SelectedAttentionTest, BitsDependOnTheQuerysOwnRowsAlone) {
  Random random(2);
  const Table table(RowFormat::fp8_656, 4, 64, 576, random);
  const Problem p = problem(16, 576, 512, 200, table, nullptr, random);  // more than are gathered at a time
  const Answers all = p.run(table, nullptr, 0, p.tokens);
  for (const int threads : {1, 2, 3}) {
    const test::Threads set(threads);
    EXPECT_EQ(p.run(table, nullptr, 0, p.tokens), all);
  }
  for (const std::int64_t t : {0, 17, 199}) {
    const Answers one = p.run(table, nullptr, t, 1);
    EXPECT_TRUE(std::equal(one.out.begin(), one.out.end(), all.out.begin() + t * 16 * 512)) << t;
    EXPECT_TRUE(std::equal(one.lse.begin(), one.lse.end(), all.lse.begin() + t * 16)) << t;
  }
}

/// Splits that threads share: each has a largest score of its own.
TEST(SelectedAttentionTest, LongSelectionsMatchToo) {
  Random random(4);
  const test::Threads set(3);
  for (const RowFormat format : {RowFormat::f32, RowFormat::bf16}) {
    const Table table(format, 20, 64, 72, random);
    const Problem p = problem(3, 72, 64, 3, table, nullptr, random, 4000);
    expect_definition(p, table, nullptr, p.run(table, nullptr, 0, p.tokens),
                      format == RowFormat::f32 ? 1e-5 : 1e-2);
  }
}

TEST(SelectedAttentionTest, SinksScaleOutputs) {
  const std::vector<float> sinks{0.5f, infinity, -infinity},
      lse{1.0f, 1.0f, 1.0f, infinity, infinity, infinity};
  std::vector<float> out(2 * 3 * 2, 2.0f);
  std::fill(out.begin() + 6, out.end(), 0.0f);
  apply_sinks(sinks.data(), lse.data(), 2, 3, 2, out.data());
  EXPECT_NEAR(out[1], 2 * std::exp(1.0) / (std::exp(1.0) + std::exp(0.5)), 1e-6);
  EXPECT_EQ(out[2], 0.0f);
  EXPECT_EQ(out[4], 2.0f);
  EXPECT_TRUE(std::all_of(out.begin() + 6, out.end(), [](float x) { return x == 0.0f; }));
}

TEST(SelectedAttentionTest, RefusesWhatDoesNotFit) {
  Random random(3);
  const Table table(RowFormat::f32, 1, 4, 8, random), wide(RowFormat::f32, 1, 4, 9, random),
      half(RowFormat::bf16, 1, 4, 8, random);
  const float heads[8] = {};
  const std::int32_t index = 0;
  float out[8], lse[1];
  const auto error = [&](const AttentionShape& shape, const RowTable* first, const RowTable* second) {
    const SelectedQuery q{heads, 8, {first, &index, 1}, {second, &index, second ? 1 : 0}, out, lse, nullptr};
    return test::error_of([&] { attend_selected(shape, {&q, 1}); });
  };
  const AttentionShape shape{1, 1, 8, 8, 1.0f, false};
  EXPECT_EQ(error(shape, &table.table, nullptr), "");
  EXPECT_NE(error(shape, nullptr, nullptr).find("no table"), std::string::npos);
  EXPECT_NE(error(shape, &wide.table, nullptr).find("rows of 9 values"), std::string::npos);
  EXPECT_NE(error(shape, &table.table, &half.table).find("of f32 and of bf16"), std::string::npos);
  for (const AttentionShape& bad : {AttentionShape{2, 2, 8, 8, 1, false},
                                    {0, 1, 8, 8, 1, false},
                                    {1, 1, 8, 9, 1, false},
                                    {1, 1, 8, 8, 0, false},
                                    {1, 1, 8, 8, 1, true}})
    EXPECT_NE(error(bad, &table.table, nullptr).find("expected one kv head"), std::string::npos);
}

}  // namespace
}  // namespace mla
