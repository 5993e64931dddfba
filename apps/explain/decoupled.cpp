// The decoupled architecture: rotation stands between query and W_UK, so a small rotated part goes beside.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"

namespace mla::app {
namespace {

/// W_UK with each column turned back by `distance`: q R W_UK absorbs the rotation of that distance.
std::vector<float> rotated_w_uk(const Sentence& s, std::int64_t head, const Rotary& rotary,
                                std::int64_t distance) {
  const std::int64_t d_n = s.shape.qk_nope_head_dim, d_c = s.shape.kv_lora_rank;
  std::vector<float> w_uk = dense(s.weights->w_uk(s.shape, head)), column(d_n);
  for (std::int64_t j = 0; j < d_c; ++j) {
    for (std::int64_t i = 0; i < d_n; ++i) column[i] = w_uk[i * d_c + j];
    column = turned_back(rotary, column, distance);
    for (std::int64_t i = 0; i < d_n; ++i) w_uk[i * d_c + j] = column[i];
  }
  return w_uk;
}

/// q W [d_c].
std::vector<float> absorb(const float* q, const std::vector<float>& w, const Sentence& s) {
  const std::int64_t d_n = s.shape.qk_nope_head_dim, d_c = s.shape.kv_lora_rank;
  std::vector<float> absorbed(d_c);
  matmul_transposed({q, 1, d_n}, as_weight({w.data(), d_n, d_c}), DType::f32, {absorbed.data(), 1, d_c});
  return absorbed;
}

/// W_UK c [d_n] of token t.
std::vector<float> content_key(const Sentence& s, std::int64_t head, std::int64_t t) {
  std::vector<float> key(s.shape.qk_nope_head_dim);
  matmul({s.row(t), 1, s.shape.kv_lora_rank}, s.weights->w_uk(s.shape, head), DType::f32,
         {key.data(), 1, s.shape.qk_nope_head_dim});
  return key;
}

/// Scores of the last token's query against every token, if the content were rotated.
struct Clash {
  std::vector<double> wanted;  ///< R_m q · R_n (W_UK c_n)
  std::vector<double> once;    ///< with the one matrix that is right for the token before
  std::vector<double> each;    ///< with a matrix for each distance
};

Clash clash_of(const Sentence& s, std::int64_t head, const Rotary& rotary) {
  const std::int64_t d_n = s.shape.qk_nope_head_dim, d_c = s.shape.kv_lora_rank, m = s.size() - 1;
  const float* q = s.query(m, head);
  const std::vector<float> turned_q = turned(rotary, {q, static_cast<std::size_t>(d_n)}, m);
  const std::vector<float> once = absorb(q, rotated_w_uk(s, head, rotary, 1), s);
  Clash clash;
  for (std::int64_t n = 0; n < s.size(); ++n) {
    const std::vector<float> key = turned(rotary, content_key(s, head, n), n);
    const std::vector<float> each = absorb(q, rotated_w_uk(s, head, rotary, m - n), s);
    clash.wanted.push_back(dot(turned_q.data(), key.data(), d_n));
    clash.once.push_back(dot(once.data(), s.row(n), d_c));
    clash.each.push_back(dot(each.data(), s.row(n), d_c));
  }
  return clash;
}

double largest(const std::vector<double>& a, const std::vector<double>& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

void tell_clash(const Sentence& s, const Rotary& rotary, Page& page) {
  const Clash clash = clash_of(s, 0, rotary);
  LineChart chart{"Scores of the last token's query", "token n", "score", {}, false, {}, {}};
  chart.series = {{"as it should be", {}}, {"absorbed once", {}}};
  for (std::size_t n = 0; n < clash.wanted.size(); ++n) {
    chart.series[0].points.push_back({static_cast<double>(n), clash.wanted[n]});
    chart.series[1].points.push_back({static_cast<double>(n), clash.once[n]});
  }
  page.picture(
      {std::move(chart), "Head 1 of the last layer, its content turned as if it had been trained so."});
  const double wrong = largest(clash.wanted, clash.once), right = largest(clash.wanted, clash.each);
  const double before = std::abs(clash.wanted[s.size() - 2] - clash.once[s.size() - 2]);
  page.check(
      "One absorbed query can't serve all distances.", wrong > 0.05 && before < 1e-4 && right < 1e-4,
      fmt::format(
          "Absorbed for distance 1, it is right for the token before ({:.0e} off) and up to {:.2f} off "
          "elsewhere. Absorbed anew for each distance it is right everywhere ({:.0e} off), at the "
          "price of a product with W_UK for each cached token.",
          before, wrong, right));
  page.numbers = {{"wanted", clash.wanted}, {"absorbed_once", clash.once}, {"absorbed_for_each", clash.each}};
}

/// The largest difference, over all heads and tokens, between scores of the explicit and the absorbed form.
double repaired_difference(const Sentence& s, const Rotary& rotary, bool broken, double& highest) {
  const std::int64_t d_n = s.shape.qk_nope_head_dim, d_c = s.shape.kv_lora_rank, m = s.size() - 1;
  const std::int64_t d_r = s.shape.qk_rope_head_dim;
  double most = 0;
  for (std::int64_t h = 0; h < s.shape.num_heads; ++h) {
    const float* q = s.query(m, h);
    std::vector<float> row_query = absorb(q, dense(s.weights->w_uk(s.shape, h)), s);
    const std::span<const float> q_rope(q + d_n, static_cast<std::size_t>(d_r));
    const std::vector<float> moved = turned(rotary, q_rope, 1);  // as if one token later
    row_query.insert(row_query.end(), broken ? moved.data() : q_rope.data(),
                     (broken ? moved.data() : q_rope.data()) + d_r);
    for (std::int64_t t = 0; t < s.size(); ++t) {
      std::vector<float> key = content_key(s, h, t);
      key.insert(key.end(), s.row(t) + d_c, s.row(t) + d_c + d_r);
      const double made = dot(q, key.data(), d_n + d_r), kept = dot(row_query.data(), s.row(t), d_c + d_r);
      most = std::max(most, std::abs(made - kept));
      highest = std::max(highest, std::abs(made));
    }
  }
  return most;
}

void tell_repair(const Sentence& s, const Rotary& rotary, bool broken, Page& page) {
  const MlaShape& shape = s.shape;
  page.say(
      "DeepSeek's way out is to rotate something else. The content stays unturned and is absorbed as before. "
      "Position gets d_r values of its own beside it: in each head's query, and in one key that all heads "
      "share, turned once and cached beside the latent.");
  page.formula("score = (q_nope W_UK) · c + q_rope · k_rope");
  Boxes boxes{"What one token leaves in the cache of a layer", {}};
  boxes.rows = {{"decoupled",
                 {{"c", shape.kv_lora_rank, fmt::format("{}", shape.kv_lora_rank)},
                  {"k_rope", shape.qk_rope_head_dim, fmt::format("{}", shape.qk_rope_head_dim)}}},
                {"all heads, explicit",
                 {{"keys", shape.num_heads * shape.qk_head_dim(),
                   fmt::format("{}", shape.num_heads * shape.qk_head_dim())},
                  {"values", shape.num_heads * shape.v_head_dim,
                   fmt::format("{}", shape.num_heads * shape.v_head_dim)}}}};
  page.picture({std::move(boxes), "How many numbers, in the embedded model."});
  double highest = 0;
  const double off = repaired_difference(s, rotary, broken, highest);
  page.check(
      "With the rotated part beside the latent, absorbing is exact again.", off < 1e-5 * (1 + highest),
      fmt::format("{} heads, {} tokens: at most {:.1e} from the scores of keys that were made, which go "
                  "up to {:.1f}.",
                  shape.num_heads, s.size(), off, highest));
  page.numbers["repaired_off"] = off;
}

}  // namespace

Page tell_decoupled(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const ModelConfig& config = with.model().config();
  RopeSpec of_content = config.rope;
  of_content.dim = s.shape.qk_nope_head_dim;
  of_content.scaling = RopeScaling::none;
  page.say(
      "Absorption moves W_UK from the latent c to the query, once for all cached tokens. Rotate the keys "
      "that W_UK makes, and R stands in between, for a query at m and a token at n:");
  page.formula("R_m q · R_n (W_UK c) = (q R_(n-m) W_UK) · c");
  page.say(
      "What is in brackets is another vector for each distance (and W_UQᵀ R_(n-m) W_UK, with the matrix that "
      "makes q, another matrix), so it can't be made once:");
  tell_clash(s, Rotary(of_content, config.max_context), page);
  tell_repair(s, Rotary(config.rope, config.max_context), with.is_broken(), page);
  page.code = {{"mla/attention/mla.cpp", "attend_absorbed"}, {"mla/attention/mla.cpp", "append_rows"}};
  return page;
}

}  // namespace mla::app
