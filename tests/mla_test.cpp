// MLA in both forms against the paper's formulas in double: every head's keys and values written out, no
// cache, no tricks.
#include "mla/attention/mla.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <complex>

#include "support/oracle.h"

namespace mla {
namespace {

using Matrix = std::vector<std::vector<double>>;
using test::Random;

struct Sizes {
  std::int64_t d, heads, q_rank, d_c, d_n, d_r, d_v;
  RopeLayout layout;
};

constexpr RopeLayout pairs = RopeLayout::interleaved, halves = RopeLayout::half_split;
constexpr Sizes all_sizes[] = {
    {19, 3, 0, 11, 5, 4, 9, pairs}, {19, 3, 7, 11, 5, 4, 9, halves}, {32, 4, 24, 16, 8, 8, 8, pairs},
    {8, 1, 5, 3, 1, 2, 1, halves},  {33, 7, 13, 40, 6, 6, 3, pairs}, {24, 2, 0, 70, 17, 2, 33, halves},
};

/// Random weights of one layer, and the layer.
struct Layer {
  Layer(const Sizes& s, Random& random)
      : shape{s.d,   s.heads, s.q_rank, s.d_c,
              s.d_n, s.d_r,   s.d_v,    1 / std::sqrt(static_cast<double>(s.d_n + s.d_r)),
              1e-6} {
    spec.dim = s.d_r;
    spec.layout = s.layout;
    const auto make = [&](std::vector<float>& to, std::int64_t rows, std::int64_t cols) {
      to = random.values(rows * cols, 1.2 / std::sqrt(static_cast<double>(cols)));
      return as_weight({to.data(), rows, cols});
    };
    if (s.q_rank > 0) {
      weights.q_a_proj = make(q_a, s.q_rank, s.d);
      weights.q_b_proj = make(q_b, s.heads * (s.d_n + s.d_r), s.q_rank);
      q_norm = random.values(s.q_rank);
      weights.q_a_norm = q_norm;
    } else {
      weights.q_proj = make(q_b, s.heads * (s.d_n + s.d_r), s.d);
    }
    weights.kv_a_proj = make(kv_a, s.d_c + s.d_r, s.d);
    kv_norm = random.values(s.d_c);
    weights.kv_a_norm = kv_norm;
    weights.kv_b_proj = make(kv_b, s.heads * (s.d_n + s.d_v), s.d_c);
    weights.o_proj = make(o, s.d, s.heads * s.d_v);
  }
  Layer(const Layer&) = delete;

  MlaShape shape;
  RopeSpec spec;
  std::vector<float> q_a, q_b, q_norm, kv_a, kv_norm, kv_b, o;
  MlaWeights weights;
};

std::vector<double> times(const std::vector<float>& w, const std::vector<double>& x) {
  std::vector<double> y(w.size() / x.size());
  for (std::size_t i = 0; i < w.size(); ++i) y[i / x.size()] += w[i] * x[i % x.size()];
  return y;
}

std::vector<double> normed(std::vector<double> x, const std::vector<float>& weight, double epsilon) {
  double squares = 0;
  for (const double v : x) squares += v * v;
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] *= weight[i] / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  return x;
}

/// Turns `dim` values from `x` as complex numbers. The angle is the f32 product that the models were trained
/// with.
void turn(double* x, const RopeSpec& spec, std::int64_t position) {
  for (std::int64_t i = 0; i < spec.dim / 2; ++i) {
    const auto frequency = static_cast<float>(
        1 / std::pow(spec.theta, static_cast<double>(2 * i) / static_cast<double>(spec.dim)));
    double& a = x[spec.layout == pairs ? 2 * i : i];
    double& b = x[spec.layout == pairs ? 2 * i + 1 : i + spec.dim / 2];
    const std::complex<double> z =
        std::complex(a, b) * std::polar(1.0, static_cast<double>(static_cast<float>(position) * frequency));
    a = z.real();
    b = z.imag();
  }
}

struct Answer {
  Matrix out;   ///< [tokens][d]
  Matrix rows;  ///< [tokens][d_c + d_r]: what each token leaves behind
};

/// The DeepSeek-V2 paper's formulas 37 to 47 (appendix C), token by token and head by head.
Answer formulas(const Layer& layer, const Matrix& x, std::int64_t first_position) {
  const MlaShape& s = layer.shape;
  const std::int64_t d_n = s.qk_nope_head_dim, d_r = s.qk_rope_head_dim, d_v = s.v_head_dim,
                     d_c = s.kv_lora_rank;
  Answer answer;
  Matrix decompressed;  // [tokens][per head: k_nope, v]
  for (std::size_t t = 0; t < x.size(); ++t) {
    const std::int64_t position = first_position + static_cast<std::int64_t>(t);
    std::vector<double> row = times(layer.kv_a, x[t]);
    const std::vector<double> c = normed({row.begin(), row.begin() + d_c}, layer.kv_norm, s.norm_epsilon);
    std::copy(c.begin(), c.end(), row.begin());
    turn(row.data() + d_c, layer.spec, position);
    answer.rows.push_back(row);
    decompressed.push_back(times(layer.kv_b, c));

    const auto latent =
        s.q_lora_rank > 0 ? normed(times(layer.q_a, x[t]), layer.q_norm, s.norm_epsilon) : x[t];
    std::vector<double> q = times(layer.q_b, latent), concatenated;
    for (std::int64_t h = 0; h < s.num_heads; ++h) {
      double* query = q.data() + h * (d_n + d_r);
      turn(query + d_n, layer.spec, position);
      std::vector<double> p(t + 1);
      double sum = 0;
      for (std::size_t j = 0; j <= t; ++j) {
        double score = 0;
        for (std::int64_t i = 0; i < d_n; ++i) score += query[i] * decompressed[j][h * (d_n + d_v) + i];
        for (std::int64_t i = 0; i < d_r; ++i) score += query[d_n + i] * answer.rows[j][d_c + i];
        sum += p[j] = std::exp(score * s.softmax_scale);
      }
      for (std::int64_t i = 0; i < d_v; ++i) {
        double value = 0;
        for (std::size_t j = 0; j <= t; ++j) value += p[j] / sum * decompressed[j][h * (d_n + d_v) + d_n + i];
        concatenated.push_back(value);
      }
    }
    answer.out.push_back(times(layer.o, concatenated));
  }
  return answer;
}

/// Runs x [tokens, d] through layer 1 of a two-layer cache in chunks, positions counted from
/// `first_position`.
std::vector<float> run(const Layer& layer, const std::vector<float>& x, KvCache& cache, MlaForm form,
                       std::int64_t chunk, std::int64_t first_position, DType compute = DType::f32) {
  const std::int64_t d = layer.shape.hidden_size, tokens = static_cast<std::int64_t>(x.size()) / d;
  const Rotary rotary(layer.spec, 1);
  Rotary::Table table;
  MlaScratch scratch;
  std::vector<float> out(x.size());
  for (std::int64_t t = 0; t < tokens; t += chunk) {
    const std::int64_t count = std::min(chunk, tokens - t), before = cache.length();
    cache.extend(count);
    rotary.fill(first_position + t, count, table);
    const MlaCall call{1, before, &rotary, &table, form, compute};
    mla_forward(layer.shape, layer.weights, call, {x.data() + t * d, count, d}, cache, scratch,
                {out.data() + t * d, count, d});
  }
  return out;
}

KvCache new_cache(const Layer& layer, DType type = DType::f32, std::int64_t page_rows = 16) {
  return KvCache(std::make_shared<PagePool>(
      RowLayout::latent(layer.shape.kv_lora_rank, layer.shape.qk_rope_head_dim, type), 2, page_rows, 1000));
}

Matrix as_rows(const std::vector<float>& x, std::int64_t d) {
  Matrix rows;
  for (auto at = x.begin(); at != x.end(); at += d) rows.emplace_back(at, at + d);
  return rows;
}

/// Largest difference relative to the size (root mean square) of what is expected.
double difference(const Matrix& expected, const std::vector<float>& found) {
  double worst = 0, squares = 0;
  std::size_t i = 0;
  for (const auto& row : expected) {
    for (const double value : row) {
      const double error = std::abs(value - found[i++]);
      worst = error <= worst ? worst : error;
      squares += value * value;
    }
  }
  return worst / std::sqrt(squares / static_cast<double>(i));
}

/// f32 through four products and two norms: some ten roundings of 6e-8 relative to sums a few times larger
/// than results.
constexpr double f32_tolerance = 2e-5;

TEST(MlaTest, BothFormsAreThePapersFormulas) {
  const test::Threads one(1);
  Random random(1);
  for (const Sizes& sizes : all_sizes) {
    const Layer layer(sizes, random);
    for (const std::int64_t first : {0, 1000, 120'000}) {
      const auto x = random.values(40 * sizes.d);
      const Answer expected = formulas(layer, as_rows(x, sizes.d), first);
      for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb, MlaForm::automatic}) {
        for (const std::int64_t chunk : {1, 7, 40}) {
          KvCache cache = new_cache(layer);
          const auto found = run(layer, x, cache, form, chunk, first);
          EXPECT_LE(difference(expected.out, found), f32_tolerance)
              << "d " << sizes.d << " first " << first << " form " << static_cast<int>(form) << " chunk "
              << chunk;
          std::vector<float> rows(static_cast<std::size_t>(40 * layer.shape.latent_width()));
          for (std::int64_t t = 0; t < 40; ++t) {
            const std::int64_t width = layer.shape.latent_width();
            cache.pool().layout().read(cache.view(1).row(t), width, rows.data() + t * width);
          }
          EXPECT_LE(difference(expected.rows, rows), f32_tolerance) << "the cached rows";
        }
      }
    }
  }
}

TEST(MlaTest, LongPastCrossesTheParts) {
  Random random(2);
  const Layer layer(all_sizes[1], random);
  const auto x = random.values(530 * layer.shape.hidden_size);  // parts end at 256 and 512
  const Answer expected = formulas(layer, as_rows(x, layer.shape.hidden_size), 5);
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    for (const std::int64_t chunk : {100, 255, 530}) {
      KvCache cache = new_cache(layer);
      EXPECT_LE(difference(expected.out, run(layer, x, cache, form, chunk, 5)), f32_tolerance) << chunk;
    }
  }
}

TEST(MlaTest, Bf16RowsAndProductsStayNear) {
  Random random(3);
  for (const Sizes& sizes : all_sizes) {
    const Layer layer(sizes, random);
    const auto x = random.values(20 * sizes.d);
    const Answer expected = formulas(layer, as_rows(x, sizes.d), 100);
    for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
      for (const DType compute : {DType::f32, DType::bf16}) {
        KvCache cache = new_cache(layer, DType::bf16);
        const double d = difference(expected.out, run(layer, x, cache, form, 7, 100, compute));
        EXPECT_LE(d, compute == DType::f32 ? 0.05 : 0.15);  // bf16 rounds by 4e-3 of each value
        EXPECT_GE(d, 1e-5) << "bf16 must show";
      }
    }
  }
}

TEST(MlaTest, BitsDoNotDependOnChunksPagesOrThreads) {
  Random random(4);
  const Layer layer(all_sizes[4], random);
  const auto x = random.values(300 * layer.shape.hidden_size);
  const test::Threads restored(1);
  for (const MlaForm form : {MlaForm::decompress, MlaForm::absorb}) {
    for (const DType type : {DType::f32, DType::bf16}) {
      set_threads(1);
      KvCache whole = new_cache(layer, type);
      const auto expected = run(layer, x, whole, form, 300, 0, type);
      for (const std::int64_t chunk : {1, 33, 300}) {
        set_threads(3);
        KvCache cache = new_cache(layer, type, chunk == 1 ? 1 : 64);
        EXPECT_EQ(expected, run(layer, x, cache, form, chunk, 0, type)) << chunk;
      }
    }
  }
}

TEST(MlaTest, AutomaticIsTheFormThatItNames) {
  Random random(5);
  const Layer layer(all_sizes[2], random);
  const auto x = random.values(60 * layer.shape.hidden_size);
  for (const std::int64_t chunk : {1, 60}) {
    KvCache a = new_cache(layer), b = new_cache(layer);
    const auto found = run(layer, x, a, MlaForm::automatic, chunk, 0);
    const auto last = run(layer, x, b, choose_form(layer.shape, chunk, 60), chunk, 0);
    const std::int64_t compared = chunk == 1 ? 1 : 60;  // short pasts may choose otherwise
    EXPECT_TRUE(std::equal(found.end() - compared * layer.shape.hidden_size, found.end(),
                           last.end() - compared * layer.shape.hidden_size));
  }
}

TEST(MlaTest, ChoiceOfFormFollowsTheArithmetic) {
  const MlaShape v3{7168, 128, 1536, 512, 128, 64, 128, 0.1, 1e-6};
  EXPECT_EQ(choose_form(v3, 1, 4096), MlaForm::absorb) << "decode";
  EXPECT_EQ(choose_form(v3, 1, 163'840), MlaForm::absorb);
  EXPECT_EQ(choose_form(v3, 4, 163'840), MlaForm::absorb) << "a few drafted tokens";
  EXPECT_EQ(choose_form(v3, 4096, 4096), MlaForm::decompress) << "prefill";
  EXPECT_EQ(choose_form(v3, 4096, 163'840), MlaForm::decompress);
  // Decompressing n rows costs 512 * 256 a head, attending saves 1088 - 320 for each token: from 171 tokens
  // on it pays, but for what absorbing costs each token.
  EXPECT_EQ(choose_form(v3, 160, 163'840), MlaForm::absorb);
  EXPECT_EQ(choose_form(v3, 180, 163'840), MlaForm::decompress);
}

TEST(MlaTest, RefusesTokensThatDoNotEndTheCache) {
  Random random(6);
  const Layer layer(all_sizes[0], random);
  KvCache cache = new_cache(layer);
  cache.extend(5);
  const Rotary rotary(layer.spec, 1);
  Rotary::Table table;
  rotary.fill(0, 2, table);
  MlaScratch scratch;
  auto x = random.values(2 * layer.shape.hidden_size);
  MatrixView<float> view(x.data(), 2, layer.shape.hidden_size);
  for (const std::int64_t first : {0, 2, 4}) {
    const MlaCall call{0, first, &rotary, &table, MlaForm::absorb, DType::f32};
    EXPECT_NE(
        test::error_of([&] { mla_forward(layer.shape, layer.weights, call, view, cache, scratch, view); }),
        "")
        << first;
  }
}

}  // namespace
}  // namespace mla
