#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mla/model/checkpoint.h"
#include "mla/model/config.h"
#include "mla/train/feed_forward.h"
#include "mla/train/heads_layer.h"
#include "mla/train/mla_layer.h"
#include "mla/train/model_parameters.h"
#include "mla/train/parameters.h"

namespace mla {

/// What forward leaves for backward in one layer.
struct LayerTape {
  Buffer<float> stream;           // [tokens, d] before the layer
  Buffer<float> attended_stream;  // [tokens, d] between attention and feed-forward
  Buffer<float> normed;           // [tokens, d] each after its norm
  Buffer<float> attended_normed;
  MlaTape mla;      // of latent attention
  HeadsTape heads;  // of attention with key and value heads
  FeedForwardTape feed_forward;
  MoeTape moe;
};

/// Tapes and working memory of a model, reused from batch to batch.
struct TrainingMemory {
  std::vector<LayerTape> layers;
  Buffer<float> stream;          // [tokens, d], the residual stream before the final norm
  Buffer<float> normed;          // [tokens, d] behind it
  Buffer<float> d_branch;        // [tokens, d] the gradient by what a layer adds
  Buffer<float> d_stream;        // [tokens, d]
  Buffer<float> d_normed;        // [tokens, d]
  std::optional<Rotary> rotary;  // for the batch's length, as inference has it for a conversation's
  Rotary::Table rope;            // of its positions
  Buffer<float> position;        // [d], of positions that are added
  MlaTrainingScratch mla;
  HeadsTrainingScratch heads;
  FeedForwardBackwardScratch feed_forward;
  CrossEntropyScratch cross_entropy;
};

/// Token ids to learn from: what each of `block`'s tokens is, and which one follows it (-1: none counts).
struct TrainingBatch {
  TokenBlock block;
  std::span<const std::int32_t> ids, targets;
};

/// How to compute.
struct TrainingOptions {
  MlaForm form = MlaForm::decompress;  ///< of latent attention
  DType compute = DType::f32;          ///< of products; weights and their gradients stay f32
};

/// A model of one of the families whose weights are trained: the layers that inference runs, in the same
/// order, and the same list backward.
class TrainedTransformer {
 public:
  /// All weights are zero.
  explicit TrainedTransformer(ModelConfig config);

  const ModelConfig& config() const { return config_; }
  Parameters& parameters() { return parameters_; }

  /// Takes the weights from a checkpoint of this config, in f32, bf16 or f16. Throws Error as bind_weights
  /// does, and for a quantised one.
  void read(const Checkpoint& checkpoint);

  /// The sum of the batch's losses in nats: -log p(target) of each token that has one. Throws Error for ids
  /// outside the vocabulary.
  double loss(const TrainingBatch& batch, const TrainingOptions& options, TrainingMemory& memory);

  /// The same, and adds the gradient of `weight` times the sum to the parameters' gradients.
  double loss_and_gradient(const TrainingBatch& batch, double weight, const TrainingOptions& options,
                           TrainingMemory& memory);

  /// How many tokens of loss_and_gradient chose each expert of each layer since the last call of move_biases:
  /// [layers][experts].
  const std::vector<std::vector<std::int64_t>>& load() const { return load_; }
  /// Moves the correction bias of every gate that has one by its load, and forgets the load.
  void move_biases(double rate);

 private:
  void check(const TrainingBatch& batch) const;
  /// Adds to the experts' load if `counts_load`.
  void forward(const TrainingBatch& batch, const TrainingOptions& options, bool counts_load,
               TrainingMemory& memory);
  void backward(const TrainingBatch& batch, const TrainingOptions& options, TrainingMemory& memory);
  void embed(const TrainingBatch& batch, MatrixView<float> stream, TrainingMemory& memory) const;
  void layer_forward(std::int64_t layer, const MlaTraining& how, bool counts_load, MatrixView<float> stream,
                     TrainingMemory& memory);
  void layer_backward(std::int64_t layer, const MlaTraining& how, MatrixView<float> d_stream,
                      TrainingMemory& memory);
  /// The layer's attention of x, of the kind that the model has.
  void attention(std::int64_t layer, const MlaTraining& how, MatrixView<const float> x, MatrixView<float> out,
                 TrainingMemory& memory);
  void attention_backward(std::int64_t layer, const MlaTraining& how, MatrixView<const float> x,
                          MatrixView<const float> d_out, MatrixView<float> d_x, TrainingMemory& memory);
  double head_loss(const TrainingBatch& batch, double weight, const TrainingOptions& options,
                   bool with_gradient, TrainingMemory& memory);

  ModelConfig config_;
  MlaShape mla_;      // of latent attention
  HeadsShape heads_;  // of attention with key and value heads
  Parameters parameters_;
  TrainedTensors tensors_;
  std::vector<std::vector<std::int64_t>> load_;
};

}  // namespace mla
