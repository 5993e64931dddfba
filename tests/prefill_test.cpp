// Explicit attention in products of bf16 pairs against the definition in double, and its invariances bit by
// bit. On CPUs without the kernels there is nothing to test.
#include "mla/attention/prefill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "mla/kernels/prefill.h"
#include "support/heads_apart.h"
#include "support/oracle.h"

namespace mla {
namespace {

using test::Random;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

/// Rows of a cache in pages in reversed order, NaN wherever no row is, at addresses that suit no vector.
class Rows {
 public:
  Rows(const RowLayout& layout, const std::vector<float>& values, std::int64_t length, std::int64_t page_rows)
      : layout_(layout) {
    const std::int64_t count = (length + page_rows - 1) / page_rows, offset = size_of(layout.type());
    memory_.resize(static_cast<std::size_t>(count));
    for (auto& page : memory_)
      page.assign(static_cast<std::size_t>(offset + page_rows * layout.bytes()), std::byte{0xff});
    for (std::int64_t i = 0; i < count; ++i)
      table_.push_back(memory_[static_cast<std::size_t>(count - 1 - i)].data());
    view_ = {layout.type(),       table_.data(),         offset,
             page_rows,           layout.bytes(),        length,
             layout.key_offset(), layout.value_offset(), layout.head_bytes()};
    for (std::int64_t r = 0; r < length; ++r)
      layout.write(values.data() + r * layout.values(), const_cast<std::byte*>(view_.row(r)));
  }
  Rows(const Rows&) = delete;
  const KvView& view() const { return view_; }
  const RowLayout& layout() const { return layout_; }

 private:
  RowLayout layout_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<const std::byte*> table_;
  KvView view_;
};

std::vector<float> rounded(std::vector<float> values) {
  for (float& x : values) x = test::rounded(x, DType::bf16);
  return values;
}

/// Queries as the kernels see them: times the scale and a constant, rounded to bf16.
std::vector<float> rounded_queries(std::vector<float> queries, float scale) {
  const float factor = scale * prefill_unit;
  for (float& x : queries) x = test::rounded(x * factor, DType::bf16) / factor;
  return queries;
}

/// Heads over latents: random weights, rows and queries.
struct Problem {
  Problem(const LatentShape& shape_, std::int64_t tokens_, std::int64_t length_, Random& random,
          double sharpness = 1)
      : shape(shape_), tokens(tokens_), length(length_) {
    const auto d_c = static_cast<double>(shape.kv_lora_rank);
    shape.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.qk_head_dim())));
    weights = rounded(random.values(weight_rows() * shape.kv_lora_rank, 1 / std::sqrt(d_c)));
    rows = rounded(random.values(length * row_width()));
    queries = random.values(tokens * query_stride(), sharpness);
    for (std::int64_t t = 0; t < tokens; ++t)
      std::fill_n(queries.begin() + t * query_stride() + query_width(), 3, nan);
  }

  std::int64_t weight_rows() const { return shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim); }
  std::int64_t row_width() const { return shape.kv_lora_rank + shape.qk_rope_head_dim; }
  std::int64_t query_width() const { return shape.num_heads * shape.qk_head_dim(); }
  std::int64_t query_stride() const { return query_width() + 3; }
  std::int64_t out_width() const { return shape.num_heads * shape.v_head_dim; }
  RowLayout layout(DType type = DType::bf16) const {
    return RowLayout::latent(shape.kv_lora_rank, shape.qk_rope_head_dim, type);
  }

  /// Tokens [first, first + count) over the rows that are there when the last of them is.
  std::vector<float> run(std::int64_t first, std::int64_t count, std::int64_t page_rows,
                         DType rows_type = DType::bf16, DType weight_type = DType::bf16) const {
    const Rows cached(layout(rows_type), rows, length - tokens + first + count, page_rows);
    Weight weight = as_weight({weights.data(), weight_rows(), shape.kv_lora_rank});
    std::vector<bf16> stored;
    for (const float w : weights) stored.push_back(to_bf16(w));
    if (weight_type == DType::bf16) {
      weight.dtype = DType::bf16;
      weight.data = reinterpret_cast<const std::byte*>(stored.data());
    }
    std::vector<float> out(static_cast<std::size_t>(count * out_width()), nan);
    prefill_latents(shape, weight,
                    {queries.data() + first * query_stride(), count, query_width(), query_stride()},
                    cached.view(), cached.layout(), {out.data(), count, out_width()});
    return out;
  }
  std::vector<float> run() const { return run(0, tokens, 16); }

  /// Keys and values written out, rounded to bf16, and attention over them.
  test::AttentionAnswer answer() const {
    const std::int64_t d_c = shape.kv_lora_rank, d_n = shape.qk_nope_head_dim, d_r = shape.qk_rope_head_dim;
    const AttentionShape heads{shape.num_heads,  shape.num_heads, shape.qk_head_dim(),
                               shape.v_head_dim, shape.scale,     true};
    test::PlainRows plain;
    plain.length = length;
    plain.value_offset = heads.d_qk;
    plain.head_width = heads.d_qk + heads.d_v;
    plain.width = heads.h_q * plain.head_width;
    for (std::int64_t r = 0; r < length; ++r) {
      const float* row = rows.data() + r * row_width();
      for (std::int64_t h = 0; h < heads.h_q; ++h) {
        for (std::int64_t i = 0; i < d_n + heads.d_v; ++i) {
          if (i == d_n) plain.data.insert(plain.data.end(), row + d_c, row + d_c + d_r);
          const float* w = weights.data() + (h * (d_n + heads.d_v) + i) * d_c;
          double sum = 0;
          for (std::int64_t j = 0; j < d_c; ++j) sum += static_cast<double>(w[j]) * row[j];
          plain.data.push_back(test::rounded(static_cast<float>(sum), DType::bf16));
        }
      }
    }
    const std::vector<float> near = rounded_queries(queries, shape.scale);
    return test::plain_attention(heads, {near.data(), tokens, query_stride(), heads.d_qk}, plain);
  }

  LatentShape shape;
  std::int64_t tokens, length;
  std::vector<float> weights, rows, queries;
};

/// The weights of the softmax are off by at most 2^-7.2 (root mean square 2^-8.8), each for itself. A key or
/// a value whose sum lies between two bf16 may be rounded to the other one: 2^-8 of it, in one of hundreds,
/// and where that is a large part of one sharp score, `slip` of the result.
void expect_near(const test::AttentionAnswer& expected, const std::vector<float>& found,
                 const std::string& where, double slip = 0.002) {
  ASSERT_EQ(expected.out.size(), found.size());
  double worst = 0, squares = 0, sizes = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double error = std::abs(expected.out[i] - found[i]) / expected.weight[i];
    worst = error <= worst ? worst : error;  // NaN wins
    squares += std::pow(expected.out[i] - found[i], 2);
    sizes += std::pow(expected.weight[i], 2);
  }
  EXPECT_LE(worst, 0.0068 * 2 + slip) << where;
  EXPECT_LE(std::sqrt(squares / sizes), 0.0023 + slip) << where;
}

std::string describe(const Problem& p) {
  const LatentShape& s = p.shape;
  return fmt::format("heads {} d_c {} d_n {} d_r {} d_v {} tokens {} rows {}", s.num_heads, s.kv_lora_rank,
                     s.qk_nope_head_dim, s.qk_rope_head_dim, s.v_head_dim, p.tokens, p.length);
}

constexpr LatentShape shapes[] = {
    {1, 1, 1, 0, 1, 1},    {1, 3, 0, 2, 1, 1},        {2, 16, 8, 8, 8, 1},    {3, 31, 5, 4, 9, 1},
    {5, 40, 33, 2, 31, 1}, {2, 65, 17, 6, 32, 1},     {3, 32, 64, 16, 33, 1}, {1, 128, 128, 64, 128, 1},
    {2, 70, 96, 3, 65, 1}, {1, 512, 192, 64, 256, 1},
};

class PrefillTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_prefill()) GTEST_SKIP() << "this CPU lacks the instructions";
  }
};

TEST_F(PrefillTest, IsAttentionOverRebuiltKeysAndValues) {
  Random random(1);
  for (const LatentShape& shape : shapes) {
    for (const auto& [tokens, length] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                         {2, 3},
                                         {1, 300},
                                         {13, 13},
                                         {16, 40},
                                         {17, 280},
                                         {33, 33},
                                         {40, 600},
                                         {64, 264},
                                         {70, 265}}) {
      const Problem p(shape, tokens, length, random);
      expect_near(p.answer(), p.run(), describe(p));
    }
  }
}

TEST_F(PrefillTest, RandomShapes) {
  Random random(2);
  for (int i = 0; i < 60; ++i) {
    const LatentShape shape{1 + random.below(4), 1 + random.below(90), random.below(70),
                            random.below(40),    1 + random.below(70), 1};
    if (shape.qk_head_dim() == 0) continue;
    const std::int64_t tokens = 1 + random.below(80);
    const Problem p(shape, tokens, tokens + random.below(2) * random.below(600), random);
    expect_near(p.answer(), p.run(0, tokens, 1 + random.below(40)), describe(p));
  }
}

TEST_F(PrefillTest, SharpSoftmax) {
  // Queries so large that scores reach 40 and more, and references move within and between tiles.
  Random random(3);
  for (const double sharpness : {8.0, 40.0, 1000.0}) {
    Problem p({2, 64, 32, 16, 32, 1}, 50, 700, random, sharpness);
    expect_near(p.answer(), p.run(), describe(p), sharpness > 500 ? 0.4 : sharpness / 400);
  }
}

/// Scores that rise from row to row: each block of rows moves the references, by 4 to 400 powers of two.
TEST_F(PrefillTest, RisingScores) {
  Random random(4);
  for (const float rise : {0.2f, 1.0f, 30.0f}) {
    for (const float direction : {1.0f, -1.0f}) {
      Problem p({1, 8, 4, 2, 8, 1}, 40, 600, random);
      p.shape.scale = 1;
      for (std::int64_t t = 0; t < p.tokens; ++t) {
        float* query = p.queries.data() + t * p.query_stride();
        std::fill_n(query, 4, 0.0f);
        query[4] = direction;
        query[5] = 0;
      }
      for (std::int64_t r = 0; r < p.length; ++r)
        p.rows[r * p.row_width() + 8] = test::rounded(rise * static_cast<float>(r), DType::bf16);
      expect_near(p.answer(), p.run(), fmt::format("rise {} {}", rise, direction));
    }
  }
}

TEST_F(PrefillTest, RowsAndWeightsOfOtherTypes) {
  Random random(5);
  const test::Threads restored(1);
  const Problem p({5, 48, 20, 8, 24, 1}, 45, 330, random);
  const auto expected = p.run();
  for (const int threads : {1, 2, 3}) {
    set_threads(threads);
    EXPECT_EQ(expected, p.run(0, p.tokens, 16, DType::f32));
    EXPECT_EQ(expected, p.run(0, p.tokens, 16, DType::bf16, DType::f32));
  }
}

TEST_F(PrefillTest, BitsDoNotDependOnChunksPagesOrThreads) {
  Random random(6);
  const test::Threads restored(1);
  for (const double sharpness : {1.0, 20.0}) {
    for (const std::int64_t heads : {1, 2, 5}) {
      const Problem p({heads, 72, 40, 6, 48, 1}, 560, 700, random, sharpness);
      set_threads(1);
      const auto expected = p.run();
      for (const int threads : {1, 2, 3}) {
        set_threads(threads);
        EXPECT_EQ(expected, p.run()) << threads;
        EXPECT_EQ(expected, p.run(0, p.tokens, 7)) << threads;
        EXPECT_EQ(expected, p.run(0, p.tokens, 64, DType::f32)) << threads;
      }
      for (const std::int64_t chunk : {1, 7, 64, 130, 512}) {
        std::vector<float> found;
        for (std::int64_t first = 0; first < p.tokens; first += chunk) {
          const auto part = p.run(first, std::min(chunk, p.tokens - first), 64);
          found.insert(found.end(), part.begin(), part.end());
        }
        EXPECT_EQ(expected, found) << "heads " << heads << " chunk " << chunk;
      }
    }
  }
}

TEST_F(PrefillTest, HeadsThatLieInRows) {
  Random random(7);
  const test::Threads restored(1);
  for (const auto& [h_q, h_kv, d_qk, d_v] :
       {std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>{4, 4, 192, 128},
        {4, 2, 128, 128},
        {6, 2, 64, 64},
        {3, 3, 5, 33},
        {5, 1, 31, 7}}) {
    for (const auto& [tokens, length] :
         {std::pair<std::int64_t, std::int64_t>{1, 1}, {1, 300}, {50, 50}, {70, 400}}) {
      const AttentionShape shape{h_q, h_kv, d_qk, d_v, 1 / std::sqrt(static_cast<float>(d_qk)), true};
      const RowLayout layout = RowLayout::heads(h_kv, d_qk, d_v, DType::bf16);
      test::PlainRows plain;
      plain.data = rounded(random.values(length * layout.values()));
      plain.length = length;
      plain.width = layout.values();
      plain.value_offset = d_qk;
      plain.head_width = d_qk + d_v;
      const std::vector<float> queries = random.values(tokens * h_q * d_qk);
      const QueryView view{queries.data(), tokens, h_q * d_qk, d_qk};
      const Rows cached(layout, plain.data, length, 6);
      std::vector<float> expected;
      for (const int threads : {1, 2, 3}) {
        set_threads(threads);
        std::vector<float> out(static_cast<std::size_t>(tokens * h_q * d_v), nan);
        prefill_heads(shape, view, cached.view(), out.data());
        if (threads == 1) expected = out;
        EXPECT_EQ(expected, out);
      }
      for (const std::int64_t page_rows : {length, std::int64_t{8}, std::int64_t{5}}) {
        std::vector<float> out(expected.size(), nan);
        prefill_heads(shape, view, test::HeadsApart(cached.view(), h_kv, page_rows).view(), out.data());
        EXPECT_EQ(expected, out) << "pages of each head's rows: " << page_rows;
      }
      const std::vector<float> near = rounded_queries(queries, shape.scale);
      expect_near(test::plain_attention(shape, {near.data(), tokens, h_q * d_qk, d_qk}, plain), expected,
                  fmt::format("h_q {} h_kv {} d_qk {} d_v {} tokens {}", h_q, h_kv, d_qk, d_v, tokens), 0);
    }
  }
}

/// A broken key must not pass for one that nobody looks at: in rows of every place in a vector and a block,
/// for tokens whose other scores are high and low.
TEST_F(PrefillTest, ANanKeyShowsInTheResult) {
  Random random(10);
  const std::int64_t tokens = 37, length = 300, d = 24;
  const AttentionShape shape{2, 1, d, d, 0.5f, true};
  const RowLayout layout = RowLayout::heads(1, d, d, DType::bf16);
  const std::vector<float> values = rounded(random.values(length * layout.values()));
  const std::vector<float> queries = random.values(tokens * 2 * d, 4);
  const auto run = [&](const std::vector<float>& rows) {
    const Rows cached(layout, rows, length, 16);
    std::vector<float> out(static_cast<std::size_t>(tokens * 2 * d));
    prefill_heads(shape, {queries.data(), tokens, 2 * d, d}, cached.view(), out.data());
    return out;
  };
  const std::vector<float> clean = run(values);
  for (const std::int64_t row : {0, 1, 6, 11, 12, 131, 262, 263, 264, 271, 280, 298, 299}) {
    std::vector<float> broken = values;
    broken[static_cast<std::size_t>(row * layout.values() + 5)] = nan;
    const std::vector<float> found = run(broken);
    for (std::int64_t i = 0; i < tokens * 2 * d; ++i) {
      const bool sees = length - tokens + i / (2 * d) >= row;
      ASSERT_EQ(std::isnan(found[static_cast<std::size_t>(i)]), sees) << "row " << row << " value " << i;
      if (!sees) {
        ASSERT_EQ(found[static_cast<std::size_t>(i)], clean[static_cast<std::size_t>(i)]);
      }
    }
  }
}

TEST_F(PrefillTest, RowsMayLieApart) {
  Random random(11);
  const Problem p({2, 24, 8, 4, 40, 1}, 5, 299, random);
  const Rows close(p.layout(), p.rows, p.length, p.length);
  // The last row ends where the memory does.
  const std::int64_t bytes = p.layout().bytes(), stride = bytes + 128;
  const auto memory = std::make_unique<std::byte[]>(static_cast<std::size_t>(p.length * stride - 128));
  const std::byte* const page = memory.get();
  for (std::int64_t r = 0; r < p.length; ++r)
    std::memcpy(memory.get() + r * stride, close.view().row(r), static_cast<std::size_t>(bytes));
  KvView apart = dense_view(p.layout(), page, p.length);
  apart.row_bytes = stride;
  std::vector<bf16> stored;
  for (const float w : p.weights) stored.push_back(to_bf16(w));
  Weight weight = as_weight({p.weights.data(), p.weight_rows(), 24});
  weight.dtype = DType::bf16;
  weight.data = reinterpret_cast<const std::byte*>(stored.data());
  std::vector<float> out(static_cast<std::size_t>(p.tokens * p.out_width()));
  prefill_latents(p.shape, weight, {p.queries.data(), p.tokens, p.query_width(), p.query_stride()}, apart,
                  p.layout(), {out.data(), p.tokens, p.out_width()});
  EXPECT_EQ(out, p.run());
}

TEST_F(PrefillTest, FirstTokenIsItsValue) {
  Random random(8);
  const Problem p({2, 24, 8, 4, 40, 1}, 1, 1, random);
  const auto answer = p.answer();
  const auto found = p.run();
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], answer.out[i], 1e-6);
}

TEST_F(PrefillTest, RefusesWhatDoesNotFit) {
  Random random(9);
  const Problem p({2, 24, 8, 4, 40, 1}, 3, 5, random);
  const Rows cached(p.layout(), p.rows, p.length, 16);
  const Weight weight = as_weight({p.weights.data(), p.weight_rows(), 24});
  std::vector<float> out(static_cast<std::size_t>(6 * p.out_width()));
  const auto error = [&](const LatentShape& shape, std::int64_t tokens, std::int64_t cols) {
    return test::error_of([&] {
      prefill_latents(shape, weight, {p.queries.data(), tokens, cols, p.query_stride()}, cached.view(),
                      cached.layout(), {out.data(), tokens, p.out_width()});
    });
  };
  EXPECT_EQ(error(p.shape, 3, p.query_width()), "");
  EXPECT_NE(error(p.shape, 3, p.query_width() - 1), "");
  EXPECT_NE(error(p.shape, 6, p.query_width()), "") << "more tokens than rows";
  LatentShape other = p.shape;
  other.kv_lora_rank = 23;
  EXPECT_NE(error(other, 3, p.query_width()), "");
  for (const AttentionShape& heads : {AttentionShape{2, 2, 8, 4, 1, false}, {3, 2, 8, 4}, {2, 0, 8, 4}}) {
    EXPECT_NE(test::error_of([&] {
                prefill_heads(heads, {p.queries.data(), 1, 16, 8}, cached.view(), out.data());
              }),
              "");
  }
}

}  // namespace
}  // namespace mla
