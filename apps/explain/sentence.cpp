#include "apps/explain/sentence.h"

#include <algorithm>

#include "apps/published_configs.h"
#include "mla/core/error.h"
#include "mla/kernels/ops.h"

namespace mla::app {
namespace {

/// The queries of x by the steps of MLA's query path (chapter 3.2.1).
std::vector<float> make_queries(const MlaShape& s, const MlaWeights& w, MatrixView<const float> x,
                                const Rotary& rotary) {
  std::vector<float> queries(x.rows * s.num_heads * s.qk_head_dim());
  const MatrixView<float> out(queries.data(), x.rows, s.num_heads * s.qk_head_dim());
  if (s.q_lora_rank > 0) {
    std::vector<float> latent(x.rows * s.q_lora_rank), normed(latent.size());
    matmul(x, w.q_a_proj, DType::f32, {latent.data(), x.rows, s.q_lora_rank});
    rms_norm(MatrixView<const float>(latent.data(), x.rows, s.q_lora_rank), w.q_a_norm, s.norm_epsilon,
             {normed.data(), x.rows, s.q_lora_rank});
    matmul(MatrixView<const float>(normed.data(), x.rows, s.q_lora_rank), w.q_b_proj, DType::f32, out);
  } else {
    matmul(x, w.q_proj, DType::f32, out);
  }
  Rotary::Table table;
  rotary.fill(0, x.rows, table);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t h = 0; h < s.num_heads; ++h)
      rotary.rotate(table, t, out.row(t) + h * s.qk_head_dim() + s.qk_nope_head_dim);
  }
  return queries;
}

}  // namespace

Sentence read_sentence(Explained& with, const std::string& text) {
  const Transformer& model = with.model();
  const ModelConfig& c = model.config();
  Sentence s;
  s.ids = with.tokenizer().encode(text);
  for (const std::int32_t id : s.ids) s.tokens.push_back(with.tokenizer().decode({&id, 1}));
  s.shape = mla_shape(c);
  s.layer = c.num_layers - 1;
  s.weights = &model.weights().layers[s.layer].mla;

  KvCache cache(model.make_pool(DType::f32, 64, 1 + s.size() / 64));
  TransformerScratch scratch;
  const Rotary rotary(c.rope, c.max_context);
  std::vector<float> trace;  // [layers + 1][tokens][d]: the embedding, then the stream behind each layer
  model.forward(s.ids, {MlaForm::absorb, DType::f32}, rotary, cache, scratch, &trace);
  s.stream.resize(s.size() * c.hidden_size);
  const MatrixView<const float> before(trace.data() + s.layer * s.size() * c.hidden_size, s.size(),
                                       c.hidden_size);
  const MatrixView<float> x(s.stream.data(), s.size(), c.hidden_size);
  rms_norm(before, model.weights().layers[s.layer].input_norm, c.norm_epsilon, x);
  s.queries = make_queries(s.shape, *s.weights, x, rotary);
  const KvView view = cache.view(s.layer);
  for (std::int64_t t = 0; t < s.size(); ++t) {
    const auto* row = reinterpret_cast<const float*>(view.row(t));
    s.rows.insert(s.rows.end(), row, row + s.shape.latent_width());
  }
  return s;
}

std::vector<float> dense(const Weight& weight) {
  std::vector<float> out(weight.rows * weight.cols);
  for (std::int64_t r = 0; r < weight.rows; ++r) read_row(weight, r, out.data() + r * weight.cols);
  return out;
}

double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

ModelConfig published(std::string_view name) {
  const auto found = std::ranges::find(published_configs(), name, &PublishedConfig::name);
  require(found != published_configs().end(), "published config: found '{}'", name);
  return parse_config(found->text, std::string(found->source));
}

}  // namespace mla::app
