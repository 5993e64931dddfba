#include "mla/train/trained_transformer.h"

#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/leaf.h"
#include "mla/kernels/ops.h"
#include "mla/model/weights.h"

namespace mla {
namespace {

/// branch = stream + scale * branch.
void add_to_stream(MatrixView<const float> stream, double scale, MatrixView<float> branch) {
  parallel_for(stream.rows, stream.cols * work_of_value, [&](std::int64_t t) {
    float* row = branch.row(t);
    for (std::int64_t i = 0; i < branch.cols && scale != 1.0; ++i) row[i] *= static_cast<float>(scale);
    leaf_kernels().add_scaled(stream.row(t), 1.0f, row, stream.cols);
  });
}

/// scale * x, in `memory` unless that is x itself.
MatrixView<const float> scaled(MatrixView<const float> x, double scale, Buffer<float>& memory) {
  if (scale == 1.0) return x;
  const MatrixView<float> out = matrix_in(memory, x.rows, x.cols);
  for (std::int64_t i = 0; i < x.rows * x.cols; ++i) out.data[i] = x.data[i] * static_cast<float>(scale);
  return out;
}

}  // namespace

TrainedTransformer::TrainedTransformer(ModelConfig config)
    : config_(std::move(config)),
      mla_(mla_shape(config_)),
      heads_(heads_shape(config_)),
      parameters_(parameter_specs(config_)),
      tensors_(find_tensors(config_, parameters_)) {
  for (const TrainedLayer& layer : tensors_.layers)
    load_.emplace_back(static_cast<std::size_t>(layer.is_moe ? config_.moe.num_experts : 0));
}

void TrainedTransformer::read(const Checkpoint& checkpoint) {
  require(config_.fp8.rows == 0, "{}: found a quantised checkpoint, expected one to train: f32, bf16 or f16",
          checkpoint.source());
  bind_weights(config_, checkpoint);  // checks names, shapes and types
  for (std::size_t i = 0; i < parameters_.specs().size(); ++i) {
    const StoredTensor& stored = *checkpoint.find(parameters_.specs()[i].name);
    const MatrixView<float> value = parameters_.at(i).value;
    const Weight weight{dtype_of(stored.type), stored.data.data(), value.rows, value.cols};
    for (std::int64_t r = 0; r < value.rows; ++r) read_row(weight, r, value.row(r));
  }
}

void TrainedTransformer::check(const TrainingBatch& batch) const {
  const auto tokens = static_cast<std::size_t>(batch.block.tokens());
  require(batch.ids.size() == tokens && batch.targets.size() == tokens,
          "training batch: found {} ids and {} targets, expected {} sequences of {}", batch.ids.size(),
          batch.targets.size(), batch.block.sequences, batch.block.length);
  require(batch.block.length <= config_.max_context,
          "training batch: found sequences of {} tokens, the model takes {}", batch.block.length,
          config_.max_context);
  for (std::size_t t = 0; t < tokens; ++t) {
    require(batch.ids[t] >= 0 && batch.ids[t] < config_.vocab_size && batch.targets[t] >= -1 &&
                batch.targets[t] < config_.vocab_size,
            "training batch: token {}: found id {} and target {}, expected less than {}", t, batch.ids[t],
            batch.targets[t], config_.vocab_size);
  }
}

// ---------------------------------------------------------------- forward

/// Each sequence begins at position 0.
void TrainedTransformer::embed(const TrainingBatch& batch, MatrixView<float> stream,
                               TrainingMemory& m) const {
  for (std::int64_t t = 0; t < stream.rows; ++t) {
    const float* row = tensors_.embedding.value.row(batch.ids[t]);
    for (std::int64_t i = 0; i < stream.cols; ++i)
      stream.row(t)[i] = row[i] * static_cast<float>(config_.embedding_scale);
  }
  for (std::int64_t first = 0; first < stream.rows; first += batch.block.length)
    add_positions(config_.position, 0, stream.block(first, batch.block.length), m.position);
}

void TrainedTransformer::attention(std::int64_t index, const MlaTraining& how, MatrixView<const float> x,
                                   MatrixView<float> out, TrainingMemory& m) {
  const TrainedLayer& w = tensors_.layers[index];
  LayerTape& tape = m.layers[index];
  if (config_.attention == AttentionKind::heads)
    heads_taped(heads_, w.heads, how, x, tape.heads, m.heads, out);
  else
    mla_taped(mla_, w.mla, how, x, tape.mla, m.mla, out);
}

/// From the layer's stream, which is on its tape, to that behind it.
void TrainedTransformer::layer_forward(std::int64_t index, const MlaTraining& how, bool counts_load,
                                       MatrixView<float> next_stream, TrainingMemory& m) {
  const TrainedLayer& w = tensors_.layers[index];
  LayerTape& tape = m.layers[index];
  const auto on_tape = [&](Buffer<float>& buffer) {
    return matrix_in(buffer, next_stream.rows, next_stream.cols);
  };
  const MatrixView<float> stream = on_tape(tape.stream), normed = on_tape(tape.normed);
  const MatrixView<float> attended = on_tape(tape.attended_stream),
                          attended_normed = on_tape(tape.attended_normed);

  rms_norm(stream, w.input_norm.vector(), config_.norm_epsilon, normed);
  attention(index, how, normed, attended, m);
  add_to_stream(stream, config_.residual_scale, attended);

  rms_norm(attended, w.post_attention_norm.vector(), config_.norm_epsilon, attended_normed);
  if (w.is_moe) {
    const std::span<std::int64_t> load = counts_load ? std::span(load_[index]) : std::span<std::int64_t>();
    moe_taped(config_.moe, w.moe, attended_normed, how.compute, tape.moe, next_stream, load);
  } else {
    feed_forward_taped(w.feed_forward, attended_normed, how.compute, tape.feed_forward, next_stream);
  }
  add_to_stream(attended, config_.residual_scale, next_stream);
}

void TrainedTransformer::forward(const TrainingBatch& batch, const TrainingOptions& options, bool counts_load,
                                 TrainingMemory& m) {
  m.rotary.emplace(config_.rope, batch.block.length);
  m.rotary->fill(0, batch.block.length, m.rope);
  m.layers.resize(tensors_.layers.size());
  const auto stream_before = [&](std::int64_t layer) {
    return matrix_in(layer < config_.num_layers ? m.layers[layer].stream : m.stream, batch.block.tokens(),
                     config_.hidden_size);
  };
  embed(batch, stream_before(0), m);
  const MlaTraining how{{batch.block, &*m.rotary, &m.rope, options.compute}, options.form};
  for (std::int64_t layer = 0; layer < config_.num_layers; ++layer)
    layer_forward(layer, how, counts_load, stream_before(layer + 1), m);
}

/// The loss of the stream; with a gradient, d_stream is written.
double TrainedTransformer::head_loss(const TrainingBatch& batch, double weight,
                                     const TrainingOptions& options, bool with_gradient, TrainingMemory& m) {
  const MatrixView<float> stream = matrix_in(m.stream, batch.block.tokens(), config_.hidden_size);
  const MatrixView<float> normed = matrix_in(m.normed, stream.rows, stream.cols);
  rms_norm(stream, tensors_.final_norm.vector(), config_.norm_epsilon, normed);
  if (!with_gradient)
    return cross_entropy(normed, tensors_.head, config_.logit_scale, batch.targets, weight, options.compute,
                         m.cross_entropy, {});

  const MatrixView<float> d_normed = matrix_in(m.d_normed, stream.rows, stream.cols);
  const MatrixView<float> d_stream = matrix_in(m.d_stream, stream.rows, stream.cols);
  const double loss = cross_entropy(normed, tensors_.head, config_.logit_scale, batch.targets, weight,
                                    options.compute, m.cross_entropy, d_normed);
  parallel_for(d_stream.rows, d_stream.cols * work_of_value,
               [&](std::int64_t t) { std::fill_n(d_stream.row(t), d_stream.cols, 0.0f); });
  rms_norm_backward(stream, tensors_.final_norm, config_.norm_epsilon, d_normed, d_stream);
  return loss;
}

// ---------------------------------------------------------------- backward: the same lists, last first

void TrainedTransformer::attention_backward(std::int64_t index, const MlaTraining& how,
                                            MatrixView<const float> x, MatrixView<const float> d_out,
                                            MatrixView<float> d_x, TrainingMemory& m) {
  const TrainedLayer& w = tensors_.layers[index];
  LayerTape& tape = m.layers[index];
  if (config_.attention == AttentionKind::heads)
    heads_backward(heads_, w.heads, how, x, d_out, tape.heads, m.heads, d_x);
  else
    mla_backward(mla_, w.mla, how, x, d_out, tape.mla, m.mla, d_x);
}

void TrainedTransformer::layer_backward(std::int64_t index, const MlaTraining& how,
                                        MatrixView<float> d_stream, TrainingMemory& m) {
  const TrainedLayer& w = tensors_.layers[index];
  LayerTape& tape = m.layers[index];
  const std::int64_t tokens = d_stream.rows, d = d_stream.cols;
  const auto taped = [&](const Buffer<float>& buffer) {
    return MatrixView<const float>(buffer.data(), tokens, d);
  };
  const MatrixView<const float> normed = taped(tape.normed), attended_normed = taped(tape.attended_normed);
  const MatrixView<float> d_normed = matrix_in(m.d_normed, tokens, d);

  MatrixView<const float> d_branch = scaled(d_stream, config_.residual_scale, m.d_branch);
  if (w.is_moe) {
    moe_backward(config_.moe, w.moe, attended_normed, d_branch, how.compute, tape.moe, m.feed_forward,
                 d_normed);
  } else {
    feed_forward_backward(w.feed_forward, attended_normed, d_branch, how.compute, tape.feed_forward,
                          m.feed_forward, d_normed);
  }
  rms_norm_backward(taped(tape.attended_stream), w.post_attention_norm, config_.norm_epsilon, d_normed,
                    d_stream);

  d_branch = scaled(d_stream, config_.residual_scale, m.d_branch);
  attention_backward(index, how, normed, d_branch, d_normed, m);
  rms_norm_backward(taped(tape.stream), w.input_norm, config_.norm_epsilon, d_normed, d_stream);
}

void TrainedTransformer::backward(const TrainingBatch& batch, const TrainingOptions& options,
                                  TrainingMemory& m) {
  const MatrixView<float> d_stream = matrix_in(m.d_stream, batch.block.tokens(), config_.hidden_size);
  const MlaTraining how{{batch.block, &*m.rotary, &m.rope, options.compute}, options.form};
  for (std::int64_t layer = config_.num_layers - 1; layer >= 0; --layer)
    layer_backward(layer, how, d_stream, m);
  // Positions that are added are constants: the embedding's gradient is that of the sum.
  embedding_backward(batch.ids, config_.embedding_scale, d_stream, tensors_.embedding);
}

double TrainedTransformer::loss(const TrainingBatch& batch, const TrainingOptions& options,
                                TrainingMemory& memory) {
  check(batch);
  forward(batch, options, false, memory);  // a measurement must not move what is trained
  return head_loss(batch, 1.0, options, false, memory);
}

double TrainedTransformer::loss_and_gradient(const TrainingBatch& batch, double weight,
                                             const TrainingOptions& options, TrainingMemory& memory) {
  check(batch);
  forward(batch, options, true, memory);
  const double loss = head_loss(batch, weight, options, true, memory);
  backward(batch, options, memory);
  return loss;
}

void TrainedTransformer::move_biases(double rate) {
  for (std::size_t i = 0; i < load_.size(); ++i) {
    const Trained& bias = tensors_.layers[i].moe.bias;
    if (!bias.empty()) move_bias(load_[i], rate, bias);
    std::fill(load_[i].begin(), load_[i].end(), 0);
  }
}

}  // namespace mla
