// 3.3.3: the weighted sum runs over latents, and W_UV is applied once behind it.
#include <fmt/format.h>

#include <cmath>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/attention/attention.h"

namespace mla::app {
namespace {

/// What the last token's query of one head finds.
struct Found {
  std::vector<double> weights;    // [tokens] the softmax's
  std::vector<float> context;     // [d_c] sum of weights times latents
  std::vector<float> of_values;   // [d_v] sum of weights times values, each made by W_UV
  std::vector<float> of_context;  // [d_v] W_UV times the context
};

/// Softmax weights and context by the library's attention over the sentence's rows.
Found attend_from_last(const Sentence& s, std::int64_t head) {
  const MlaShape& m = s.shape;
  const std::int64_t d_n = m.qk_nope_head_dim, d_c = m.kv_lora_rank, width = m.latent_width();
  const float* q = s.query(s.size() - 1, head);
  std::vector<float> absorbed(width);  // q_nope W_UK | q_rope
  matmul_transposed(MatrixView<const float>(q, 1, d_n), s.weights->w_uk(m, head), DType::f32,
                    {absorbed.data(), 1, d_c});
  std::copy_n(q + d_n, m.qk_rope_head_dim, absorbed.data() + d_c);
  const auto scale = static_cast<float>(m.softmax_scale);
  const AttentionShape shape{1, 1, width, d_c, scale, true};
  const auto* page = reinterpret_cast<const std::byte*>(s.rows.data());
  Found found{{}, std::vector<float>(d_c), {}, {}};
  float lse = 0;
  attend(shape, {absorbed.data(), 1, width, width},
         dense_view(RowLayout::latent(d_c, m.qk_rope_head_dim, DType::f32), page, s.size()),
         found.context.data(), &lse);
  for (std::int64_t t = 0; t < s.size(); ++t)
    found.weights.push_back(std::exp(m.softmax_scale * dot(absorbed.data(), s.row(t), width) - lse));
  return found;
}

Found find(const Sentence& s, std::int64_t head, bool broken) {
  const MlaShape& m = s.shape;
  const std::int64_t d_c = m.kv_lora_rank, d_v = m.v_head_dim;
  Found found = attend_from_last(s, head);
  std::vector<float> value(d_v);
  found.of_values.resize(d_v);
  for (std::int64_t t = 0; t < s.size(); ++t) {
    matmul(MatrixView<const float>(s.row(t), 1, d_c), s.weights->w_uv(m, head), DType::f32,
           {value.data(), 1, d_v});
    for (std::int64_t i = 0; i < d_v; ++i)
      found.of_values[i] += static_cast<float>(found.weights[t] * value[i]);
  }
  found.of_context.resize(d_v);
  matmul(MatrixView<const float>(found.context.data(), 1, d_c),
         s.weights->w_uv(m, broken ? (head + 1) % m.num_heads : head), DType::f32,
         {found.of_context.data(), 1, d_v});
  return found;
}

/// W_O's part for one head [d, d_v] as f32.
std::vector<float> output_part(const Sentence& s, std::int64_t head) {
  const std::int64_t d_v = s.shape.v_head_dim;
  const std::vector<float> all = dense(s.weights->o_proj);
  std::vector<float> part;
  for (std::int64_t r = 0; r < s.shape.hidden_size; ++r) {
    const float* first = all.data() + (r * s.shape.num_heads + head) * d_v;
    part.insert(part.end(), first, first + d_v);
  }
  return part;
}

/// How far (W_O W_UV) context is from W_O (W_UV context), as a share of the largest value.
double off_in_output(const Sentence& s, std::int64_t head, const Found& found) {
  const std::int64_t d = s.shape.hidden_size, d_c = s.shape.kv_lora_rank, d_v = s.shape.v_head_dim;
  const std::vector<float> w_o = output_part(s, head);
  std::vector<float> folded(d * d_c), one(d), two(d);
  matmul_transposed(MatrixView<const float>(w_o.data(), d, d_v), s.weights->w_uv(s.shape, head), DType::f32,
                    {folded.data(), d, d_c});
  matmul(MatrixView<const float>(found.context.data(), 1, d_c),
         as_weight(MatrixView<const float>(folded.data(), d, d_c)), DType::f32, {one.data(), 1, d});
  matmul(MatrixView<const float>(found.of_context.data(), 1, d_v),
         as_weight(MatrixView<const float>(w_o.data(), d, d_v)), DType::f32, {two.data(), 1, d});
  return largest_difference(one, two) / largest_size(two);
}

/// What decoding one token would build, and what it builds.
void tell_sizes(Page& page, const MlaShape& v3, std::int64_t cached) {
  const std::int64_t values = cached * v3.num_heads * v3.v_head_dim,
                     contexts = v3.num_heads * v3.kv_lora_rank;
  const std::int64_t folded = v3.num_heads * v3.hidden_size * v3.kv_lora_rank;
  const std::int64_t apart = v3.num_heads * v3.v_head_dim * (v3.hidden_size + v3.kv_lora_rank);
  page.say(fmt::format(
      "Never built: the values. One layer of DeepSeek-V3, one new token, {} cached: {} numbers. Instead each "
      "head has one context, {} numbers in all, however long the cache. One could go on and fold W_UV into "
      "the output projection W_O too, but the product is larger than the two: {} against {} million weights. "
      "So both stay, one behind the other.",
      grouped(cached), grouped(values), grouped(contexts), folded / 1000000, apart / 1000000));
  page.numbers["v3"] = {{"cached", cached},
                        {"values_never_built", values},
                        {"context_numbers", contexts},
                        {"weights_folded", folded},
                        {"weights_apart", apart}};
}

}  // namespace

Page tell_context_vector(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  page.say(
      "A head's output is the sum of all tokens' values v = W_UV c, each times its softmax weight p. The sum "
      "may move inside: sum up the latents c first. That sum, the context vector, meets W_UV once.");
  page.formula("Σ p_t (W_UV c_t)  =  W_UV (Σ p_t c_t)      over all tokens t");
  page.say(fmt::format(
      "What the last token of \"{}\" finds in the embedded model's last layer (the first of {} numbers):",
      usual_text, s.shape.v_head_dim));
  Table table{{"head", "sum of values", "W_UV times context", "largest difference", "looks most at"}, {}};
  double worst = 0, folded = 0, size = 1;
  BarChart chart{"Where the last token looks, head 1", "softmax weight", {}};
  for (std::int64_t head = 0; head < s.shape.num_heads; ++head) {
    const Found found = find(s, head, with.is_broken());
    const double off = largest_difference(found.of_values, found.of_context);
    const auto most = std::ranges::max_element(found.weights) - found.weights.begin();
    table.rows.push_back({fmt::format("{}", head + 1), fmt::format("{:.5f}", found.of_values[0]),
                          fmt::format("{:.5f}", found.of_context[0]), fmt::format("{:.0e}", off),
                          s.tokens[most]});
    worst = std::max(worst, off);
    size = std::max(size, largest_size(found.of_values));
    folded = std::max(folded, off_in_output(s, head, found));
    for (std::int64_t t = 0; head == 0 && t < s.size(); ++t)
      chart.bars.push_back({s.tokens[t], found.weights[t]});
    page.numbers["heads"].push_back({{"weights", found.weights}, {"difference", off}});
  }
  page.table(std::move(table));
  page.picture({std::move(chart), "The weights by which latents are summed up.", false});
  page.check("W_UV behind the sum gives what values one by one give, and so does W_UV folded into W_O.",
             worst <= 1e-5 * size && folded <= 1e-5,
             fmt::format("Off by {} at most; folded into W_O by {} of the largest output.", tiny(worst),
                         tiny(folded)));
  tell_sizes(page, mla_shape(published("v3")), 4096);
  page.numbers["difference"] = worst;
  page.code = {{"mla/attention/mla.cpp", "attend_absorbed"}, {"mla/attention/attention.h", "attend"}};
  return page;
}

}  // namespace mla::app
