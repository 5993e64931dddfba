// 3.3.2: scores by decompressing keys and by absorbing W_UK into the query are the same numbers.
#include <fmt/format.h>

#include <cmath>

#include "apps/explain/sentence.h"

namespace mla::app {
namespace {

struct Scores {
  std::vector<double> decompressed, absorbed;
  double difference = 0;  ///< the largest
};

/// Of the last token's query in `head` against every token, without the rotated part, which both share.
Scores scores_of(const Sentence& s, std::int64_t head, bool broken) {
  const std::int64_t d_n = s.shape.qk_nope_head_dim, d_c = s.shape.kv_lora_rank;
  const Weight w_uk = s.weights->w_uk(s.shape, head);
  const Weight used = broken ? s.weights->w_uk(s.shape, (head + 1) % s.shape.num_heads) : w_uk;
  const float* q = s.query(s.size() - 1, head);
  std::vector<float> absorbed(d_c), key(d_n);  // q W_UK, once for all tokens
  matmul_transposed(MatrixView<const float>(q, 1, d_n), used, DType::f32, {absorbed.data(), 1, d_c});
  Scores scores;
  for (std::int64_t t = 0; t < s.size(); ++t) {
    matmul(MatrixView<const float>(s.row(t), 1, d_c), w_uk, DType::f32, {key.data(), 1, d_n});
    scores.decompressed.push_back(dot(q, key.data(), d_n));
    scores.absorbed.push_back(dot(absorbed.data(), s.row(t), d_c));
    scores.difference =
        std::max(scores.difference, std::abs(scores.decompressed.back() - scores.absorbed.back()));
  }
  return scores;
}

/// Multiply-adds of one layer for m new tokens that make n rows in all.
double explicit_work(const MlaShape& s, double m, double n) {
  const auto h = static_cast<double>(s.num_heads), d_c = static_cast<double>(s.kv_lora_rank);
  return h * (n * d_c * static_cast<double>(s.qk_nope_head_dim + s.v_head_dim) +
              m * n * static_cast<double>(s.qk_head_dim() + s.v_head_dim));
}
double absorbed_work(const MlaShape& s, double m, double n) {
  const auto h = static_cast<double>(s.num_heads), d_c = static_cast<double>(s.kv_lora_rank);
  return h * (m * d_c * static_cast<double>(s.qk_nope_head_dim + s.v_head_dim) +
              m * n * static_cast<double>(s.latent_width() + s.kv_lora_rank));
}

Slider work_slider(const MlaShape& s) {
  Slider slider;
  slider.id = "work";
  slider.label = "New tokens, behind 4096 cached ones";
  slider.low = 0, slider.high = 9, slider.step = 1, slider.start = 0;
  slider.shown = "2 ** x";
  slider.data = {{"heads", s.num_heads},
                 {"latent", s.kv_lora_rank},
                 {"nope", s.qk_nope_head_dim},
                 {"rope", s.qk_rope_head_dim},
                 {"value", s.v_head_dim}};
  slider.script =
      "const m = 2 ** x, n = 4096 + m, d = data; "
      "const made = d.heads * (n * d.latent * (d.nope + d.value) + m * n * (d.nope + d.rope + d.value)); "
      "const kept = d.heads * (m * d.latent * (d.nope + d.value) + m * n * (2 * d.latent + d.rope)); "
      "const text = v => (v / 1e9).toPrecision(3) + ' billion multiply-adds'; "
      "return [{name: 'decompressing', value: made, text: text(made)}, {name: 'absorbing', value: kept, "
      "text: text(kept)}];";
  slider.stops.heads = {"new tokens", "decompressing", "absorbing", "ratio"};
  for (const double m : {1.0, 16.0, 128.0, 512.0}) {
    const double n = 4096 + m, made = explicit_work(s, m, n), kept = absorbed_work(s, m, n);
    slider.stops.rows.push_back({fmt::format("{:.0f}", m), fmt::format("{:.2f} billion", made / 1e9),
                                 fmt::format("{:.2f} billion", kept / 1e9),
                                 fmt::format("{:.2f}", made / kept)});
  }
  return slider;
}

/// Work of both ways over the number of new tokens.
Picture work_picture(const MlaShape& s) {
  LineChart chart{"Work of one layer, 4096 tokens cached", "new tokens", "billion multiply-adds", {}, true};
  chart.series = {{"decompressing", {}}, {"absorbing", {}}};
  for (double m = 1; m <= 512; m *= 2) {
    chart.series[0].points.push_back({m, explicit_work(s, m, 4096 + m) / 1e9});
    chart.series[1].points.push_back({m, absorbed_work(s, m, 4096 + m) / 1e9});
  }
  return {chart, "In DeepSeek-V3's sizes. Decompressing pays a price at once, absorbing with every token.",
          true};
}

/// The first number of new tokens for which decompressing is less work.
std::int64_t crossover(const MlaShape& s, double cached) {
  double m = 1;
  while (m < 1e6 && explicit_work(s, m, cached + m) >= absorbed_work(s, m, cached + m)) ++m;
  return static_cast<std::int64_t>(m);
}

}  // namespace

Page tell_absorption(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const std::int64_t head = 0;
  const Scores scores = scores_of(s, head, with.is_broken());
  page.say(
      "A score is a query times a key, and MLA's key is made from the cached latent c: k = W_UK c. But "
      "brackets may "
      "move. Multiply the query by W_UK once, and it meets every latent directly; no key is ever made.");
  page.formula("q · (W_UK c)  =  (q W_UK) · c");
  page.say(fmt::format(
      "The embedded model has read \"{}\". In its last layer, head 1, the last token's query scores "
      "every token both ways:",
      usual_text));
  Table table{{"token", "keys made: q · (W_UK c)", "absorbed: (q W_UK) · c"}, {}};
  for (std::int64_t t = 0; t < s.size(); ++t)
    table.rows.push_back({s.tokens[t], fmt::format("{:.5f}", scores.decompressed[t]),
                          fmt::format("{:.5f}", scores.absorbed[t])});
  page.table(std::move(table));
  double largest = 0;
  for (const double score : scores.decompressed) largest = std::max(largest, std::abs(score));
  page.check("Absorbing W_UK into the query changes no score, beyond the rounding of f32.",
             scores.difference <= 1e-5 * (1 + largest),
             fmt::format("Largest difference {:.1e}, scores up to {:.2f}.", scores.difference, largest));

  const MlaShape v3 = mla_shape(published("v3"));
  const std::int64_t turn = crossover(v3, 4096);
  page.say(fmt::format(
      "Which way is less work? Keys and values of all {} heads of DeepSeek-V3 are {} numbers a token, its "
      "latent "
      "{}. One new token behind 4096: decompressing makes all keys and values again. Many new tokens: "
      "the keys, once made, serve them all, and are shorter than the latent.",
      v3.num_heads, v3.num_heads * (v3.qk_head_dim() + v3.v_head_dim), v3.latent_width()));
  page.picture(work_picture(v3));
  page.blocks.push_back(work_slider(v3));
  page.check("For one new token absorbing is far less work; from some number on, decompressing is.",
             explicit_work(v3, 1, 4097) > 10 * absorbed_work(v3, 1, 4097) && turn > 1 && turn < 4096,
             fmt::format("DeepSeek-V3, 4096 cached: {:.0f} times less for one token; decompressing wins from "
                         "{} new tokens on.",
                         explicit_work(v3, 1, 4097) / absorbed_work(v3, 1, 4097), turn));
  page.numbers = {{"decompressed", scores.decompressed},
                  {"absorbed", scores.absorbed},
                  {"difference", scores.difference},
                  {"crossover_at_4096", turn}};
  page.code = {{"mla/attention/mla.cpp", "attend_absorbed"}, {"mla/attention/form_cost.cpp", "choose_form"}};
  return page;
}

}  // namespace mla::app
