// 3.2.2: one token on its way to the row it leaves behind, and from the row to keys and values.
#include <fmt/format.h>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/kernels/ops.h"

namespace mla::app {
namespace {

/// What becomes of one token, step by step.
struct Walk {
  std::vector<float> pressed;  // [d_c + d_r] W_DKV and W_KR of the stream
  std::vector<float> row;      // [d_c + d_r] c_kv | k_rope
  std::vector<float> made;     // [n_h (d_n + d_v)] keys and values of the heads
};

Walk walk(const Sentence& s, std::int64_t token, const Rotary& rotary, bool skips_norm) {
  const MlaShape& m = s.shape;
  const MlaWeights& w = *s.weights;
  const std::int64_t all = m.num_heads * (m.qk_nope_head_dim + m.v_head_dim);
  Walk at{std::vector<float>(m.latent_width()), {}, std::vector<float>(all)};
  matmul(MatrixView<const float>(s.stream.data() + token * m.hidden_size, 1, m.hidden_size), w.kv_a_proj,
         DType::f32, {at.pressed.data(), 1, m.latent_width()});
  at.row = at.pressed;
  const MatrixView<float> c_kv(at.row.data(), 1, m.kv_lora_rank);
  if (!skips_norm) rms_norm(c_kv, w.kv_a_norm, m.norm_epsilon, c_kv);
  Rotary::Table table;
  rotary.fill(token, 1, table);
  rotary.rotate(table, 0, at.row.data() + m.kv_lora_rank);
  matmul(c_kv, w.kv_b_proj, DType::f32, {at.made.data(), 1, all});
  return at;
}

BoxRow row_boxes(const MlaShape& m, const std::string& label, const std::string& first,
                 const std::string& second, const std::vector<float>& row) {
  return {label,
          {{first, m.kv_lora_rank, fmt::format("({:.2f})", norm(row.data(), m.kv_lora_rank))},
           {second, m.qk_rope_head_dim,
            fmt::format("({:.2f})", norm(row.data() + m.kv_lora_rank, m.qk_rope_head_dim))}}};
}

Boxes draw(const Sentence& s, std::int64_t token, const Walk& at) {
  const MlaShape& m = s.shape;
  const float* h = s.stream.data() + token * m.hidden_size;
  BoxRow heads{"after `kv_b_proj`", {}};
  for (std::int64_t i = 0; i < m.num_heads; ++i) {
    heads.boxes.push_back({"", m.qk_nope_head_dim, ""});
    heads.boxes.push_back({"", m.v_head_dim, ""});
  }
  heads.boxes[0].name = fmt::format("{} heads, k {} | v {}", m.num_heads, m.qk_nope_head_dim, m.v_head_dim);
  heads.boxes[0].note = fmt::format("(head 1: {:.2f} | {:.2f})", norm(at.made.data(), m.qk_nope_head_dim),
                                    norm(at.made.data() + m.qk_nope_head_dim, m.v_head_dim));
  const std::string d_c = grouped(m.kv_lora_rank), d_r = grouped(m.qk_rope_head_dim);
  return {fmt::format("Widths to scale; in brackets the norm: \"{}\"", s.tokens[token]),
          {{"h, the stream, normed",
            {{grouped(m.hidden_size), m.hidden_size, fmt::format("({:.2f})", norm(h, m.hidden_size))}}},
           row_boxes(m, "after `kv_a_proj_with_mqa`", d_c, d_r, at.pressed),
           row_boxes(m, "normed | rotated: KEPT", "c_kv " + d_c, "k_rope " + d_r, at.row),
           std::move(heads)}};
}

}  // namespace

Page tell_kv_path(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const MlaShape& m = s.shape;
  const std::int64_t token = s.size() / 3;
  const ModelConfig& c = with.model().config();
  const Walk at = walk(s, token, Rotary(c.rope, c.max_context), with.is_broken());
  page.say(fmt::format(
      "A token's keys and values start from its vector h in the residual stream ({} numbers). W_DKV "
      "compresses h into the latent c_kv of d_c = {} numbers, W_KR makes d_r = {} more: one key part for all "
      "heads, rotated by the token's position. Latent and rotated key are all that is kept. Whoever needs "
      "keys and values makes them from c_kv, by W_UK and W_UV of each of the {} heads.",
      m.hidden_size, m.kv_lora_rank, m.qk_rope_head_dim, m.num_heads));
  page.formula(
      "c_kv = norm(W_DKV h)        k_rope = rotate(W_KR h)\n"
      "k = (W_UK c_kv | k_rope)    v = W_UV c_kv");
  page.say(fmt::format("In the checkpoint, below `model.layers.{}.self_attn.`:", s.layer));
  page.table({{"tensor", "shape", "does"},
              {{"kv_a_proj_with_mqa.weight", shape_text(s.weights->kv_a_proj), "W_DKV, W_KR: compresses"},
               {"kv_a_layernorm.weight", fmt::format("[{}]", s.weights->kv_a_norm.size()), "norm of c_kv"},
               {"kv_b_proj.weight", shape_text(s.weights->kv_b_proj), "per head W_UK, then W_UV"}}});
  page.picture({draw(s, token, at),
                "One token of the embedded model, last layer. The third row is what the cache holds.",
                false});
  const float* cached = s.row(token);
  const double difference = largest_difference(at.row, {cached, static_cast<std::size_t>(m.latent_width())});
  page.check("These steps are all: they make the row that lies in the model's cache, bit for bit.",
             difference == 0,
             fmt::format("{} numbers, largest difference {}.", at.row.size(), tiny(difference)));
  const ModelConfig v3 = published("v3");
  page.say(fmt::format(
      "Here the row saves little: {} numbers instead of {}, since the model has few heads. DeepSeek-V3 has "
      "{} heads, and its row of {} numbers stands for {}.",
      m.latent_width(), at.made.size(), v3.num_heads, v3.latent_width(),
      grouped(v3.num_heads * (v3.qk_nope_head_dim + v3.v_head_dim))));
  page.numbers = {{"token", s.tokens[token]},
                  {"norm_stream", norm(s.stream.data() + token * m.hidden_size, m.hidden_size)},
                  {"norm_pressed", norm(at.pressed.data(), m.kv_lora_rank)},
                  {"norm_c_kv", norm(at.row.data(), m.kv_lora_rank)},
                  {"norm_k_rope", norm(at.row.data() + m.kv_lora_rank, m.qk_rope_head_dim)},
                  {"row", at.row},
                  {"difference", difference}};
  page.code = {{"mla/attention/mla.cpp", "append_rows"}, {"mla/attention/mla.cpp", "decompress_rows"}};
  return page;
}

}  // namespace mla::app
