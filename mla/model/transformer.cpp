#include "mla/model/transformer.h"

#include "mla/core/error.h"
#include "mla/kernels/ops.h"

namespace mla {
namespace {

void append(std::vector<float>* trace, MatrixView<const float> x) {
  if (trace) trace->insert(trace->end(), x.data, x.data + x.rows * x.cols);
}

}  // namespace

RowLayout row_layout(const ModelConfig& c, DType type) {
  return c.attention == AttentionKind::latent
             ? RowLayout::latent(c.kv_lora_rank, c.qk_rope_head_dim, type)
             : RowLayout::heads(c.num_kv_heads, c.head_dim, c.head_dim, type);
}

void Transformer::set_shapes() {
  mla_ = mla_shape(config_);
  heads_ = heads_shape(config_);
}

Transformer Transformer::load(const std::filesystem::path& directory) {
  Transformer model;
  model.config_ = read_config(directory);
  model.checkpoint_ = std::make_shared<const Checkpoint>(Checkpoint::open(directory));
  model.weights_ = bind_weights(model.config_, *model.checkpoint_);
  model.set_shapes();
  return model;
}

Transformer Transformer::in_memory(ModelConfig config, ModelWeights weights, Buffer<std::byte> memory) {
  Transformer model;
  model.config_ = std::move(config);
  model.weights_ = std::move(weights);
  model.memory_ = std::make_shared<const Buffer<std::byte>>(std::move(memory));
  model.set_shapes();
  return model;
}

DType Transformer::default_compute() const {
  return weights_.embedding.dtype == DType::f32 ? DType::f32 : DType::bf16;
}

std::shared_ptr<PagePool> Transformer::make_pool(DType type, std::int64_t page_rows,
                                                 std::int64_t max_pages) const {
  return std::make_shared<PagePool>(row_layout(config_, type), config_.num_layers, page_rows, max_pages);
}

void Transformer::embed(std::span<const std::int32_t> ids, MatrixView<float> stream) const {
  for (std::int64_t t = 0; t < stream.rows; ++t) {
    read_row(weights_.embedding, ids[t], stream.row(t));
    if (config_.embedding_scale == 1.0) continue;
    for (std::int64_t i = 0; i < stream.cols; ++i)
      stream.row(t)[i] *= static_cast<float>(config_.embedding_scale);
  }
}

void Transformer::attention(const Step& step, MatrixView<const float> x, TransformerScratch& scratch,
                            MatrixView<float> out) const {
  const LayerWeights& w = weights_.layers[step.layer];
  const auto& [form, compute, kernels] = step.options;
  if (config_.attention == AttentionKind::heads) {
    const HeadsCall call{step.layer, step.first_position, &step.rotary, &scratch.rope, kernels, compute};
    gqa_forward(heads_, w.heads, call, x, step.cache, scratch.heads, out);
  } else {
    const MlaCall call{step.layer, step.first_position, &step.rotary, &scratch.rope, form, compute};
    mla_forward(mla_, w.mla, call, x, step.cache, scratch.mla, out);
  }
}

void Transformer::layer_forward(const Step& step, TransformerScratch& scratch,
                                MatrixView<float> stream) const {
  const LayerWeights& w = weights_.layers[step.layer];
  const DType compute = step.options.compute;
  MatrixView<float> normed = matrix_in(scratch.normed, stream.rows, stream.cols);
  MatrixView<float> branch = matrix_in(scratch.branch, stream.rows, stream.cols);

  rms_norm(stream, w.input_norm, config_.norm_epsilon, normed);
  attention(step, normed, scratch, branch);
  add_scaled(branch, config_.residual_scale, stream);

  rms_norm(stream, w.post_attention_norm, config_.norm_epsilon, normed);
  if (w.is_moe) {
    moe_forward(config_.moe, w.moe, normed, compute, scratch.moe, branch);
  } else {
    feed_forward(w.feed_forward, normed, compute, scratch.feed_forward, branch);
  }
  add_scaled(branch, config_.residual_scale, stream);
}

MatrixView<float> Transformer::forward(std::span<const std::int32_t> ids, const ForwardOptions& options,
                                       const Rotary& rotary, KvCache& cache, TransformerScratch& scratch,
                                       std::vector<float>* trace) const {
  for (const std::int32_t id : ids) {
    require(id >= 0 && id < config_.vocab_size, "token id: found {}, expected 0 to {}", id,
            config_.vocab_size - 1);
  }
  const auto count = static_cast<std::int64_t>(ids.size());
  const std::int64_t first = cache.length();
  cache.extend(count);
  rotary.fill(first, count, scratch.rope);

  MatrixView<float> stream = matrix_in(scratch.stream, count, config_.hidden_size);
  embed(ids, stream);
  add_positions(config_.position, first, stream, scratch.position);
  append(trace, stream);
  for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
    layer_forward({layer, first, rotary, options, cache}, scratch, stream);
    if (layer + 1 < config_.num_layers) append(trace, stream);
  }
  rms_norm(stream, weights_.final_norm, config_.norm_epsilon, stream);
  append(trace, stream);
  return stream;
}

MlaForm Transformer::form_for(const ForwardOptions& options, DType rows, std::int64_t tokens,
                              std::int64_t length) const {
  require(config_.attention == AttentionKind::latent, "{}: only latent attention has forms",
          config_.model_type);
  return options.form == MlaForm::automatic ? choose_form(mla_, tokens, length, options.compute, rows)
                                            : options.form;
}

void Transformer::logits(MatrixView<const float> hidden, DType compute, MatrixView<float> out) const {
  matmul(hidden, weights_.head, compute, out);
  if (config_.logit_scale == 1.0) return;
  for (std::int64_t t = 0; t < out.rows; ++t) {
    for (std::int64_t i = 0; i < out.cols; ++i) out.row(t)[i] *= static_cast<float>(config_.logit_scale);
  }
}

}  // namespace mla
