// 3.6: the module from scratch, and a slow computation from the weights that it must agree with.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/explain/latent_attention.h"
#include "apps/explain/sentence.h"
#include "apps/explain/shown_code.h"
#include "apps/explain/vectors.h"
#include "mla/core/error.h"

namespace mla::app {
namespace {

using Vector = std::vector<double>;

// ---------------------------------------------------------------- the same in double, by plain loops

Vector product(const Weight& weight, const Vector& x) {
  const std::vector<float> w = dense(weight);
  Vector y(weight.rows);
  for (std::int64_t r = 0; r < weight.rows; ++r) {
    for (std::int64_t c = 0; c < weight.cols; ++c) y[r] += static_cast<double>(w[r * weight.cols + c]) * x[c];
  }
  return y;
}

/// The first values of x, as many as `weight` has, normed; the others are kept.
void norm_in_place(std::span<const float> weight, double epsilon, Vector& x) {
  double square = 0;
  for (std::size_t i = 0; i < weight.size(); ++i) square += x[i] * x[i] / static_cast<double>(weight.size());
  for (std::size_t i = 0; i < weight.size(); ++i) x[i] *= weight[i] / std::sqrt(square + epsilon);
}

/// Turns `pairs` pairs at x.
void turn(const RopeSpec& rope, std::int64_t position, double* x) {
  const std::vector<float> frequencies = rope_frequencies(rope, rope.original_context);
  const std::int64_t pairs = rope.dim / 2;
  for (std::int64_t i = 0; i < pairs; ++i) {
    const bool interleaved = rope.layout == RopeLayout::interleaved;
    double& a = x[interleaved ? 2 * i : i];
    double& b = x[interleaved ? 2 * i + 1 : i + pairs];
    const double angle = static_cast<double>(position) * frequencies[i];
    const double turned_a = a * std::cos(angle) - b * std::sin(angle);
    b = a * std::sin(angle) + b * std::cos(angle);
    a = turned_a;
  }
}

/// One token's queries, and the key and value of each head.
struct SlowToken {
  Vector queries, keys, values;  // [n_h][d_n + d_r] twice, [n_h][d_v]
};

SlowToken slow_token(const MlaShape& s, const MlaWeights& w, const RopeSpec& rope, std::int64_t position,
                     const Vector& x) {
  SlowToken token;
  Vector latent = product(w.q_a_proj, x), row = product(w.kv_a_proj, x);
  norm_in_place(w.q_a_norm, s.norm_epsilon, latent);
  norm_in_place(w.kv_a_norm, s.norm_epsilon, row);
  turn(rope, position, row.data() + s.kv_lora_rank);
  token.queries = product(w.q_b_proj, latent);
  const Vector c_kv(row.begin(), row.begin() + s.kv_lora_rank);
  for (std::int64_t h = 0; h < s.num_heads; ++h) {
    turn(rope, position, token.queries.data() + h * s.qk_head_dim() + s.qk_nope_head_dim);
    const Vector key = product(w.w_uk(s, h), c_kv), value = product(w.w_uv(s, h), c_kv);
    token.keys.insert(token.keys.end(), key.begin(), key.end());
    token.keys.insert(token.keys.end(), row.begin() + s.kv_lora_rank, row.end());
    token.values.insert(token.values.end(), value.begin(), value.end());
  }
  return token;
}

/// What head h of the last of `tokens` finds: softmax(q K^T) V, added to out [d_v].
void slow_head(const MlaShape& s, std::span<const SlowToken> tokens, std::int64_t h, double* out) {
  const std::int64_t d_qk = s.qk_head_dim(), d_v = s.v_head_dim;
  const double* q = tokens.back().queries.data() + h * d_qk;
  Vector weights;
  double sum = 0;
  for (const SlowToken& token : tokens) {
    double score = 0;
    for (std::int64_t i = 0; i < d_qk; ++i) score += q[i] * token.keys[h * d_qk + i];
    weights.push_back(std::exp(score * s.softmax_scale));
    sum += weights.back();
  }
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    for (std::int64_t i = 0; i < d_v; ++i) out[i] += weights[t] / sum * tokens[t].values[h * d_v + i];
  }
}

/// [tokens][d] in explicit form: every key and value is made, nothing is absorbed.
std::vector<float> slow_attention(const Sentence& s, const RopeSpec& rope) {
  const std::int64_t d = s.shape.hidden_size, d_v = s.shape.v_head_dim;
  std::vector<SlowToken> tokens;
  std::vector<float> out;
  for (std::int64_t t = 0; t < s.size(); ++t) {
    const Vector x(s.stream.begin() + t * d, s.stream.begin() + (t + 1) * d);
    tokens.push_back(slow_token(s.shape, *s.weights, rope, t, x));
    Vector values(s.shape.num_heads * d_v);
    for (std::int64_t h = 0; h < s.shape.num_heads; ++h)
      slow_head(s.shape, tokens, h, values.data() + h * d_v);
    for (const double y : product(s.weights->o_proj, values)) out.push_back(static_cast<float>(y));
  }
  return out;
}

// ---------------------------------------------------------------- the page

/// The module's results [tokens][d]: all tokens but the last in one call, then the last behind them.
std::vector<float> run_module(Sentence& s, const Rotary& rotary, bool broken) {
  MlaShape shape = s.shape;
  if (broken) shape.softmax_scale = 1 / std::sqrt(static_cast<double>(shape.qk_nope_head_dim));
  std::vector<float> rows, out(s.stream.size());
  const Matrix x(s.stream.data(), s.size(), shape.hidden_size), y(out.data(), s.size(), shape.hidden_size);
  const std::int64_t last = s.size() - 1;
  latent_attention(shape, *s.weights, rotary, rows, x.block(0, last), y.block(0, last));
  latent_attention(shape, *s.weights, rotary, rows, x.block(last, 1), y.block(last, 1));
  return out;
}

std::vector<float> run_library(const Sentence& s, const Transformer& model, const Rotary& rotary) {
  KvCache cache(model.make_pool(f32, 64, 1 + s.size() / 64));
  cache.extend(s.size());
  Rotary::Table table;
  rotary.fill(0, s.size(), table);
  MlaScratch scratch;
  std::vector<float> out(s.stream.size());
  mla_forward(s.shape, *s.weights, {s.layer, 0, &rotary, &table, MlaForm::decompress, f32},
              {s.stream.data(), s.size(), s.shape.hidden_size}, cache, scratch,
              {out.data(), s.size(), s.shape.hidden_size});
  return out;
}

/// What stands between the marks of the file.
std::string shown_code() {
  const std::string_view file = latent_attention_file();
  const std::string_view first = "// [shown\n", last = "// shown]";
  const std::size_t from = file.find(first), to = file.find(last);
  require(from != file.npos && to != file.npos && from < to, "latent_attention.h: found no marks");
  return std::string(file.substr(from + first.size(), to - from - first.size()));
}

Boxes widths(const MlaShape& s) {
  const auto box = [](const char* name, std::int64_t width) {
    return Box{name, width, fmt::format("{}", width)};
  };
  Boxes boxes{"One token's way through the module", {}};
  boxes.rows = {{"in", {box("x", s.hidden_size)}},
                {"compressed", {box("q_latent", s.q_lora_rank)}},
                {"all heads' queries", {box("q", s.num_heads * s.qk_head_dim())}},
                {"cached", {box("c_kv", s.kv_lora_rank), box("k_rope", s.qk_rope_head_dim)}},
                {"queries that meet the cache", {box("absorbed", s.num_heads * s.latent_width())}},
                {"sums of latents", {box("sums", s.num_heads * s.kv_lora_rank)}},
                {"all heads' values", {box("v", s.num_heads * s.v_head_dim)}},
                {"out", {box("out", s.hidden_size)}}};
  return boxes;
}

}  // namespace

Page tell_module(Explained& with) {
  Page page;
  Sentence s = read_sentence(with, usual_text);
  require(s.shape.q_lora_rank > 0, "module: found a model without query latent, expected one with it");
  const ModelConfig& config = with.model().config();
  const Rotary rotary(config.rope, config.max_context);
  const std::vector<float> module = run_module(s, rotary, with.is_broken());
  const std::vector<float> slow = slow_attention(s, config.rope);
  const double to_slow = largest_difference(module, slow);
  const double to_library = largest_difference(module, run_library(s, with.model(), rotary));
  const double size = largest_difference(slow, std::vector<float>(slow.size()));
  page.say(
      "The whole module in the library's own steps, for n new tokens x [n, d] behind those whose `rows` are "
      "cached. (`Owned` is a `Matrix` with its memory; the text is that of the file which was compiled.)");
  page.blocks.push_back(Code{shown_code()});
  page.picture({widths(s.shape), "Numbers at each step, of the embedded model.", true});
  page.check(
      "The module computes latent attention: as plain loops in double do, from the same weights.",
      to_slow < 1e-5 * (1 + size) && to_library < 1e-5 * (1 + size),
      fmt::format(
          "The embedded model's last layer, {} tokens, fed in two parts: at most {:.1e} off, {:.1e} from "
          "`mla_forward`; values up to {:.2f}.",
          s.size(), to_slow, to_library, size));
  page.numbers = {{"to_slow", to_slow}, {"to_library", to_library}, {"largest_value", size}};
  page.code = {{"apps/explain/latent_attention.h", "latent_attention"},
               {"mla/attention/mla.cpp", "mla_forward"}};
  return page;
}

}  // namespace mla::app
