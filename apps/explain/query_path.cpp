// 3.2.1: one token on its way to its queries.
#include <fmt/format.h>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/kernels/ops.h"

namespace mla::app {
namespace {

/// What becomes of one token, step by step.
struct Walk {
  std::vector<float> latent;   // [d_c']
  std::vector<float> normed;   // [d_c']
  std::vector<float> queries;  // [n_h (d_n + d_r)]
  std::vector<float> rotated;  // the same after the rotation
};

Walk walk(const Sentence& s, std::int64_t token, const Rotary& rotary, bool skips_norm) {
  const MlaShape& m = s.shape;
  const MlaWeights& w = *s.weights;
  const std::int64_t d_q = m.q_lora_rank, all = m.num_heads * m.qk_head_dim();
  Walk at{std::vector<float>(d_q), std::vector<float>(d_q), std::vector<float>(all), {}};
  matmul(MatrixView<const float>(s.stream.data() + token * m.hidden_size, 1, m.hidden_size), w.q_a_proj,
         DType::f32, {at.latent.data(), 1, d_q});
  rms_norm(MatrixView<const float>(at.latent.data(), 1, d_q), w.q_a_norm, m.norm_epsilon,
           {at.normed.data(), 1, d_q});
  if (skips_norm) at.normed = at.latent;
  matmul(MatrixView<const float>(at.normed.data(), 1, d_q), w.q_b_proj, DType::f32,
         {at.queries.data(), 1, all});
  at.rotated = at.queries;
  Rotary::Table table;
  rotary.fill(token, 1, table);
  for (std::int64_t h = 0; h < m.num_heads; ++h)
    rotary.rotate(table, 0, at.rotated.data() + h * m.qk_head_dim() + m.qk_nope_head_dim);
  return at;
}

/// The token's queries as the model makes them when it reads the sentence.
std::vector<float> library_queries(const Transformer& model, const Sentence& s, std::int64_t token,
                                   const Rotary& rotary) {
  KvCache cache(model.make_pool(DType::f32, 64, 1 + s.size() / 64));
  TransformerScratch scratch;
  model.forward(s.ids, {MlaForm::absorb, DType::f32}, rotary, cache, scratch);
  const std::int64_t all = s.shape.num_heads * s.shape.qk_head_dim();
  const float* last_layer = scratch.mla.queries.data() + token * all;
  return {last_layer, last_layer + all};
}

/// The queries of all heads in a row: content, part to be rotated, content, ...
BoxRow heads_row(const MlaShape& m, const std::string& label, const std::vector<float>& q) {
  BoxRow row{label, {}};
  const float* first = q.data();
  for (std::int64_t h = 0; h < m.num_heads; ++h) {
    row.boxes.push_back({"", m.qk_nope_head_dim, ""});
    row.boxes.push_back({"", m.qk_rope_head_dim, ""});
  }
  row.boxes[0].name = fmt::format("{} heads of {} | {}", m.num_heads, m.qk_nope_head_dim, m.qk_rope_head_dim);
  row.boxes[0].note = fmt::format("(head 1: {:.2f} | {:.2f})", norm(first, m.qk_nope_head_dim),
                                  norm(first + m.qk_nope_head_dim, m.qk_rope_head_dim));
  return row;
}

Boxes draw(const Sentence& s, std::int64_t token, const Walk& at) {
  const MlaShape& m = s.shape;
  const auto one = [](std::string label, const float* x, std::int64_t n) {
    return BoxRow{std::move(label), {{grouped(n), n, fmt::format("({:.2f})", norm(x, n))}}};
  };
  return {fmt::format("Widths to scale; in brackets the norm: \"{}\"", s.tokens[token]),
          {one("h, the stream, normed", s.stream.data() + token * m.hidden_size, m.hidden_size),
           one("after `q_a_proj`", at.latent.data(), m.q_lora_rank),
           one("after `q_a_layernorm`", at.normed.data(), m.q_lora_rank),
           heads_row(m, "after `q_b_proj`", at.queries), heads_row(m, "rotated", at.rotated)}};
}

}  // namespace

Page tell_query_path(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const MlaShape& m = s.shape;
  const std::int64_t token = s.size() / 3;
  const ModelConfig& c = with.model().config();
  const Rotary rotary(c.rope, c.max_context);
  const Walk at = walk(s, token, rotary, with.is_broken());
  page.say(fmt::format(
      "Queries are made as in multi-head attention: each of the n_h = {} heads gets one of its own from h, "
      "the token's vector in the residual stream (d = {} numbers, normed). DeepSeek only makes the way "
      "narrow: W_DQ compresses h into d_c' = {} numbers, and W_UQ and W_QR make all queries of those.",
      m.num_heads, m.hidden_size, m.q_lora_rank));
  page.formula("q  =  (W_UQ | W_QR) · norm(W_DQ h)");
  page.say(fmt::format(
      "A head's query has two parts: d_n = {} numbers for content, and d_r = {} that are rotated by the "
      "token's position. In the checkpoint, below `model.layers.{}.self_attn.`:",
      m.qk_nope_head_dim, m.qk_rope_head_dim, s.layer));
  page.table({{"tensor", "shape", "does"},
              {{"q_a_proj.weight", shape_text(s.weights->q_a_proj), "W_DQ: compresses"},
               {"q_a_layernorm.weight", fmt::format("[{}]", s.weights->q_a_norm.size()), "norm"},
               {"q_b_proj.weight", shape_text(s.weights->q_b_proj), "W_UQ, W_QR: per head"}}});
  page.picture({draw(s, token, at),
                "One token of the embedded model, last layer. A rotation changes no norm.", false});
  const std::vector<float> library = library_queries(with.model(), s, token, rotary);
  const double difference = largest_difference(at.rotated, library);
  page.check("These steps are all: they make the queries with which the model attends, bit for bit.",
             difference == 0,
             fmt::format("{} numbers, largest difference {}.", library.size(), tiny(difference)));
  const ModelConfig v3 = published("v3");
  const std::int64_t outputs = v3.num_heads * v3.qk_head_dim();
  const std::int64_t direct = outputs * v3.hidden_size, narrow = v3.q_lora_rank * (v3.hidden_size + outputs);
  page.say(fmt::format(
      "The narrow way saves weights, not cache: in DeepSeek-V3 {} million instead of {} million a layer. "
      "Queries are used once and forgotten; DeepSeek-V2-Lite makes them from h directly, by `q_proj`.",
      narrow / 1000000, direct / 1000000));
  page.numbers = {{"token", s.tokens[token]},
                  {"norm_stream", norm(s.stream.data() + token * m.hidden_size, m.hidden_size)},
                  {"norm_latent", norm(at.latent.data(), m.q_lora_rank)},
                  {"norm_normed", norm(at.normed.data(), m.q_lora_rank)},
                  {"queries", at.rotated},
                  {"difference", difference},
                  {"v3_weights_narrow", narrow},
                  {"v3_weights_direct", direct}};
  page.code = {{"mla/attention/mla.cpp", "make_queries"}};
  return page;
}

}  // namespace mla::app
