// 3.3.1: queries, keys and values from X and from c, on integers that the eye can follow and on real weights.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"

namespace mla::app {
namespace {

struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<float> values;

  float at(std::int64_t r, std::int64_t c) const { return values[r * cols + c]; }
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
};

/// a b by the library; b [inputs, outputs], as it stands on paper.
Matrix product(const Matrix& a, const Matrix& b) {
  Matrix out{a.rows, b.cols, std::vector<float>(a.rows * b.cols)};
  matmul_transposed(a.view(), as_weight(b.view()), DType::f32, {out.values.data(), out.rows, out.cols});
  return out;
}

/// a b by the definition.
Matrix by_hand(const Matrix& a, const Matrix& b) {
  Matrix out{a.rows, b.cols, {}};
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t c = 0; c < b.cols; ++c) {
      double sum = 0;
      for (std::int64_t i = 0; i < a.cols; ++i) sum += static_cast<double>(a.at(r, i)) * b.at(i, c);
      out.values.push_back(static_cast<float>(sum));
    }
  }
  return out;
}

/// A stored weight [outputs, inputs] as it stands on paper.
Matrix on_paper(const Weight& weight) {
  const std::vector<float> stored = dense(weight);
  Matrix out{weight.cols, weight.rows, std::vector<float>(stored.size())};
  for (std::int64_t r = 0; r < out.rows; ++r) {
    for (std::int64_t c = 0; c < out.cols; ++c) out.values[r * out.cols + c] = stored[c * out.rows + r];
  }
  return out;
}

/// Row r as "[ 1  2]", every number `digits` wide; spaces beside a matrix that has fewer rows.
std::string row_text(const Matrix& m, std::int64_t r, int digits) {
  if (r >= m.rows) return "";
  std::string cells;
  for (std::int64_t c = 0; c < m.cols; ++c)
    cells += fmt::format("{}{:{}}", c == 0 ? "" : " ", m.at(r, c), digits);
  return "[" + cells + "]";
}

/// Named matrices side by side, each below its name.
std::string side_by_side(const std::vector<std::pair<std::string, const Matrix*>>& all) {
  std::int64_t height = 0;
  for (const auto& one : all) height = std::max(height, one.second->rows);
  std::vector<std::string> lines(height + 1);
  for (const auto& one : all) {
    const int digits = largest_size(one.second->values) >= 10 ? 2 : 1;
    const std::size_t width = std::max(one.first.size(), row_text(*one.second, 0, digits).size());
    for (std::int64_t r = -1; r < height; ++r)
      lines[r + 1] += fmt::format("{:<{}}  ", r < 0 ? one.first : row_text(*one.second, r, digits), width);
  }
  std::string out;
  for (std::string& line : lines) {
    while (line.ends_with(' ')) line.pop_back();
    out += (out.empty() ? "" : "\n") + line;
  }
  return out;
}

// ---------------------------------------------------------------- small integers

struct Small {
  Matrix x{3, 4, {1, 0, 2, 1, 0, 1, 1, 3, 2, 1, 0, 1}};
  Matrix w_q{4, 2, {1, 0, 2, 1, 0, 1, 1, 1}};
  Matrix w_dkv{4, 2, {1, 1, 0, 2, 1, 0, 1, 1}};
  Matrix w_uk{2, 3, {1, 2, 0, 0, 1, 1}};
  Matrix w_uv{2, 3, {2, 0, 1, 1, 1, 0}};
};

/// Appends the small example to the page. Whether all its products are as they should be.
bool tell_small(Page& page, bool broken) {
  const Small m;
  Matrix used = m.w_uk;  // what the library multiplies with
  if (broken) used.values[0] += 1;
  const Matrix q = product(m.x, m.w_q), c = product(m.x, m.w_dkv), k = product(c, used),
               v = product(c, m.w_uv);
  page.formula(side_by_side(
      {{"X", &m.x}, {"W_Q", &m.w_q}, {"Q = X W_Q", &q}, {"W_DKV", &m.w_dkv}, {"c = X W_DKV", &c}}));
  page.formula(
      side_by_side({{"c", &c}, {"W_UK", &used}, {"K = c W_UK", &k}, {"W_UV", &m.w_uv}, {"V = c W_UV", &v}}));
  page.numbers["small"] = {{"Q", q.values}, {"c", c.values}, {"K", k.values}, {"V", v.values}};
  const Matrix c_by_hand = by_hand(m.x, m.w_dkv);
  return q.values == by_hand(m.x, m.w_q).values && c.values == c_by_hand.values &&
         k.values == by_hand(c_by_hand, m.w_uk).values && v.values == by_hand(c_by_hand, m.w_uv).values &&
         k.values == product(m.x, by_hand(m.w_dkv, m.w_uk)).values;
}

// ---------------------------------------------------------------- real weights

/// Rows divided by the root of their mean square, column by column times `weight`: RMSNorm by the definition.
Matrix normed_by_hand(const Matrix& x, std::span<const float> weight, double epsilon) {
  Matrix out = x;
  for (std::int64_t r = 0; r < x.rows; ++r) {
    const float* row = x.values.data() + r * x.cols;
    const double size = std::sqrt(dot(row, row, x.cols) / static_cast<double>(x.cols) + epsilon);
    for (std::int64_t c = 0; c < x.cols; ++c)
      out.values[r * x.cols + c] = static_cast<float>(row[c] / size * weight[c]);
  }
  return out;
}

/// Of every token the first `count` of the numbers that `row` leads to.
template <class Row>
Matrix gathered(const Sentence& s, std::int64_t count, const Row& row) {
  Matrix out{s.size(), count, {}};
  for (std::int64_t t = 0; t < s.size(); ++t) out.values.insert(out.values.end(), row(t), row(t) + count);
  return out;
}

/// A matrix of head 1 from the library, and from X by plain loops.
struct Pair {
  std::string name;
  Matrix library, hand;
};

/// The library's: queries and latents as the model has them, keys and values made of those latents. REQUIRES
/// a model with a query latent.
std::vector<Pair> real_pairs(const Sentence& s, bool broken) {
  const MlaShape& m = s.shape;
  const MlaWeights& w = *s.weights;
  const Matrix x{s.size(), m.hidden_size, s.stream};
  const Matrix q = gathered(s, m.qk_nope_head_dim, [&](std::int64_t t) { return s.query(t, 0); });
  const Matrix c = gathered(s, m.kv_lora_rank, [&](std::int64_t t) { return s.row(t); });
  Matrix w_uk = on_paper(w.w_uk(m, 0));
  const Matrix w_uv = on_paper(w.w_uv(m, 0)), k = product(c, w_uk), v = product(c, w_uv);
  if (broken) w_uk.values[0] += 1;
  const Matrix c_hand = normed_by_hand(by_hand(x, on_paper(w.kv_a_proj.row_block(0, m.kv_lora_rank))),
                                       w.kv_a_norm, m.norm_epsilon);
  const Matrix c_query = normed_by_hand(by_hand(x, on_paper(w.q_a_proj)), w.q_a_norm, m.norm_epsilon);
  return {{"Q", q, by_hand(c_query, on_paper(w.q_b_proj.row_block(0, m.qk_nope_head_dim)))},
          {"c", c, c_hand},
          {"K = c W_UK", k, by_hand(c_hand, w_uk)},
          {"V = c W_UV", v, by_hand(c_hand, w_uv)}};
}

/// The keys that there would be without the norm: the latent first, and W_DKV and W_UK as one matrix.
Pair without_norm(const Sentence& s) {
  const Matrix x{s.size(), s.shape.hidden_size, s.stream};
  const Matrix w_dkv = on_paper(s.weights->kv_a_proj.row_block(0, s.shape.kv_lora_rank));
  const Matrix w_uk = on_paper(s.weights->w_uk(s.shape, 0));
  return {"no norm: X (W_DKV W_UK)", product(product(x, w_dkv), w_uk), product(x, product(w_dkv, w_uk))};
}

void tell_real(Page& page, const Sentence& s, bool broken) {
  std::vector<Pair> pairs = real_pairs(s, broken);
  pairs.push_back(without_norm(s));
  Table table{{"head 1", "shape", "first number", "the other way", "off by"}, {}};
  double worst = 0;
  for (const Pair& p : pairs) {
    const double off = largest_difference(p.library.values, p.hand.values);
    worst = std::max(worst, off / std::max(1.0, largest_size(p.library.values)));
    table.rows.push_back({p.name, fmt::format("{} x {}", p.library.rows, p.library.cols),
                          fmt::format("{:.5f}", p.library.values[0]), fmt::format("{:.5f}", p.hand.values[0]),
                          tiny(off)});
    page.numbers["off_by"][p.name] = off;
  }
  page.table(std::move(table));
  page.check(
      "On trained weights too, K and V come from c alone; without the norm, W_DKV and W_UK are one matrix.",
      worst <= 1e-5, fmt::format("Off by {} of the largest number at most.", tiny(worst)));
}

Boxes draw(const Sentence& s) {
  const MlaShape& m = s.shape;
  BoxRow keys{"keys | values", {}};
  for (std::int64_t h = 0; h < m.num_heads; ++h) {
    keys.boxes.push_back({"", m.qk_nope_head_dim, ""});
    keys.boxes.push_back({"", m.v_head_dim, ""});
  }
  keys.boxes[0].name = fmt::format("{} x ({} | {})", m.num_heads, m.qk_nope_head_dim, m.v_head_dim);
  return {"Numbers of one token in the embedded model, to scale",
          {{"X", {{grouped(m.hidden_size), m.hidden_size, ""}}},
           {"c", {{grouped(m.kv_lora_rank), m.kv_lora_rank, ""}}},
           std::move(keys)}};
}

}  // namespace

Page tell_derivation(Explained& with) {
  Page page;
  page.say(
      "X holds a row for each token. Q = X W_Q makes queries, as ever. Keys and values go through the narrow "
      "c = X W_DKV, of which each head makes its own: K = c W_UK, V = c W_UV. With small integers:");
  const bool small_holds = tell_small(page, with.is_broken());
  page.check("The products are right, and K = X (W_DKV W_UK) too: c is a stop on the way, not a detour.",
             small_holds, "Integers: the library's products equal plain loops exactly.");
  const Sentence s = read_sentence(with, usual_text);
  page.say(fmt::format(
      "Now the {} tokens of \"{}\" in the embedded model's last layer, as the library made them, and the "
      "other way by plain loops from X. The model norms c before it is used (queries too come by a normed "
      "latent).",
      s.size(), usual_text));
  page.picture({draw(s), "c is narrower than X, and than what is made of it.", false});
  tell_real(page, s, with.is_broken());
  page.code = {{"mla/attention/mla.cpp", "append_rows"}, {"mla/kernels/matmul.h", "matmul_transposed"}};
  return page;
}

}  // namespace mla::app
