// 3.7: attention by itself does not know in which order the tokens came.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/attention/attention.h"

namespace mla::app {
namespace {

/// What the tokens of a sentence look at, and how.
struct Look {
  bool has_positions;  ///< keys are turned to where they stand; else the rotated part is left out
  bool is_causal;
};

/// Absorbed queries [tokens][n_h][width]: q_nope W_UK, then the rotated part if it counts.
std::vector<float> make_queries(const Sentence& s, const Look& look) {
  const std::int64_t n_h = s.shape.num_heads, d_n = s.shape.qk_nope_head_dim, d_c = s.shape.kv_lora_rank;
  const std::int64_t width = look.has_positions ? s.shape.latent_width() : d_c;
  std::vector<float> queries(s.size() * n_h * width);
  for (std::int64_t h = 0; h < n_h; ++h) {
    const MatrixView<float> of_head(queries.data() + h * width, s.size(), width, n_h * width);
    matmul_transposed({s.query(0, h), s.size(), d_n, n_h * s.shape.qk_head_dim()},
                      s.weights->w_uk(s.shape, h), DType::f32, of_head.columns(0, d_c));
    for (std::int64_t t = 0; t < s.size(); ++t)
      std::copy_n(s.query(t, h) + d_n, width - d_c, of_head.row(t) + d_c);
  }
  return queries;
}

/// The cached rows when token order[i] stands at place i: [tokens][width].
std::vector<float> place_rows(const Sentence& s, const Look& look, const Rotary& rotary,
                              const std::vector<std::int64_t>& order) {
  const std::int64_t d_c = s.shape.kv_lora_rank;
  std::vector<float> rows;
  for (std::int64_t i = 0; i < s.size(); ++i) {
    const float* row = s.row(order[i]);
    rows.insert(rows.end(), row, row + d_c);
    if (!look.has_positions) continue;
    const std::span<const float> key(row + d_c, static_cast<std::size_t>(s.shape.qk_rope_head_dim));
    const std::vector<float> moved = turned(rotary, turned_back(rotary, key, order[i]), i);
    rows.insert(rows.end(), moved.begin(), moved.end());
  }
  return rows;
}

/// How much each token's result changes when the tokens stand in `order` instead of their own: the length of
/// the difference as a share of the result's. Causal: token order[i] looks from place i at places 0 to i.
std::vector<double> changes(const Sentence& s, const Look& look, const Rotary& rotary,
                            const std::vector<std::int64_t>& order) {
  const std::int64_t n_h = s.shape.num_heads, d_c = s.shape.kv_lora_rank, tokens = s.size();
  const std::vector<float> queries = make_queries(s, look);
  const std::int64_t of_token = std::ssize(queries) / tokens, width = of_token / n_h;
  const RowLayout layout = RowLayout::latent(d_c, width - d_c, DType::f32);
  const AttentionShape shape{n_h, 1, width, d_c, static_cast<float>(s.shape.softmax_scale), look.is_causal};
  const auto results = [&](const std::vector<std::int64_t>& places) {
    const std::vector<float> rows = place_rows(s, look, rotary, places);
    std::vector<float> placed, out(tokens * n_h * d_c), by_token(out.size());
    for (const std::int64_t t : places)
      placed.insert(placed.end(), queries.data() + t * of_token, queries.data() + (t + 1) * of_token);
    const auto* page = reinterpret_cast<const std::byte*>(rows.data());
    attend(shape, {placed.data(), tokens, of_token, width}, dense_view(layout, page, tokens), out.data(),
           nullptr);
    for (std::int64_t i = 0; i < tokens; ++i)
      std::copy_n(out.data() + i * n_h * d_c, n_h * d_c, by_token.data() + places[i] * n_h * d_c);
    return by_token;
  };
  std::vector<std::int64_t> own(tokens);
  std::iota(own.begin(), own.end(), 0);
  const std::vector<float> before = results(own), after = results(order);
  std::vector<double> all;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto width_of_result = static_cast<std::size_t>(n_h * d_c);
    const std::span<const float> a(before.data() + t * n_h * d_c, width_of_result);
    all.push_back(distance(a, {after.data() + t * n_h * d_c, width_of_result}) / norm(a));
  }
  return all;
}

}  // namespace

Page tell_order(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const ModelConfig& config = with.model().config();
  const Rotary rotary(config.rope, config.max_context);
  std::vector<std::int64_t> order(s.size());  // backwards, but the last token stays last
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin(), order.end() - 1);
  page.say(
      "A token's result is a sum of values, each with a weight that its key and the query decide. A sum "
      "doesn't know in which order its terms came. If keys don't say where they stand, nothing does, and any "
      "permutation P of keys and values leaves it as it was:");
  page.formula("softmax(q Kᵀ) V  =  softmax(q (P K)ᵀ) (P V)");
  page.say(
      fmt::format("The embedded model's last layer attends over \"{}\", and then over the same tokens "
                  "backwards (the last stays last), with the same queries. How much does each token's "
                  "result change, as a share of its length?",
                  usual_text));
  const std::vector<double> nothing = changes(s, {with.is_broken(), false}, rotary, order);
  const std::vector<double> masked = changes(s, {false, true}, rotary, order);
  const std::vector<double> rotated = changes(s, {true, false}, rotary, order);
  HeatMap map{"Change of each token's result", "token", "", s.tokens, {}, 3, s.size(), {}, 0, 1};
  map.y_names = {"no positions", "mask alone", "rotated keys"};
  for (const std::vector<double>* row : {&nothing, &masked, &rotated})
    map.values.insert(map.values.end(), row->begin(), row->end());
  page.picture(
      {std::move(map),
       "Light: no change. Mask alone: no positions, but each token sees only those before it. Rotated keys: "
       "positions, and no mask."});

  Table table{{"change of", "first token", "middle", "last", "largest"}, {}};
  const auto show = [&](const char* name, const std::vector<double>& change) {
    const auto text = [](double x) {
      return x > 0 && x < 1e-3 ? fmt::format("{:.0e}", x) : fmt::format("{:.3f}", x);
    };
    table.rows.push_back({name, text(change.front()), text(change[change.size() / 2]), text(change.back()),
                          text(std::ranges::max(change))});
  };
  show("no positions", nothing);
  show("mask alone", masked);
  show("rotated keys", rotated);
  page.table(std::move(table));
  page.check("Without positions, the order of what a token looks at changes nothing.",
             std::ranges::max(nothing) < 1e-5,
             fmt::format("Largest change {:.1e}: rounding, since a sum in f32 does feel its order a little.",
                         std::ranges::max(nothing)));
  page.check(
      "The causal mask alone tells which tokens came before, and nothing of their order.",
      masked.back() < 1e-5 && masked.front() > 0.01,
      fmt::format("The last token sees the same ones either way: {:.1e}. The first saw itself alone and "
                  "now sees others: {:.3f}.",
                  masked.back(), masked.front()));
  page.check("Keys that are turned to their places tell the order.", rotated.back() > 0.001,
             fmt::format("The last token's result changes by {:.3f}.", rotated.back()));
  page.numbers = {{"no_positions", nothing}, {"causal_mask", masked}, {"rotated", rotated}};
  page.code = {{"mla/attention/attention.cpp", "attend"}, {"mla/attention/shape.h", "causal"}};
  return page;
}

}  // namespace mla::app
