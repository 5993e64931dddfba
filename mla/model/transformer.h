#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "mla/attention/gqa.h"
#include "mla/attention/mla.h"
#include "mla/model/checkpoint.h"
#include "mla/model/config.h"
#include "mla/model/moe.h"
#include "mla/model/weights.h"

namespace mla {

/// Memory that calls of Transformer::forward reuse; one per conversation that runs at a time.
struct TransformerScratch {
  Buffer<float> stream;  // [tokens, d] the residual stream
  Buffer<float> normed;  // [tokens, d]
  Buffer<float> branch;  // [tokens, d] what a layer adds
  Rotary::Table rope;
  Buffer<float> position;  // [d]
  MlaScratch mla;
  HeadsScratch heads;
  FeedForwardScratch feed_forward;
  MoeScratch moe;
};

/// How one forward pass computes.
struct ForwardOptions {
  MlaForm form = MlaForm::automatic;  ///< of latent attention
  DType compute = DType::f32;
  HeadsKernels kernels = HeadsKernels::automatic;  ///< of attention with key and value heads
};

/// The row that one token keeps in one layer of such a model, stored as `type`. Throws Error for a type that
/// only latents are kept in.
RowLayout row_layout(const ModelConfig& config, DType type);

/// A loaded model: config and weights, read-only, shared by any number of conversations.
class Transformer {
 public:
  /// Loads a checkpoint directory: config.json and safetensors. The weights stay in the mapped files. Throws
  /// Error as read_config, Checkpoint::open and bind_weights do.
  static Transformer load(const std::filesystem::path& directory);

  /// A model whose weights lie in `memory`, which lives as long as the model; it has no checkpoint().
  static Transformer in_memory(ModelConfig config, ModelWeights weights, Buffer<std::byte> memory);

  const ModelConfig& config() const { return config_; }
  /// REQUIRES a model that was loaded.
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelWeights& weights() const { return weights_; }

  /// What its products are made of unless someone asks otherwise: f32 if the weights are f32, else bf16.
  DType default_compute() const;

  /// A pool for this model's rows, kept as `type`; at most `max_pages` pages. Throws Error as row_layout
  /// does.
  std::shared_ptr<PagePool> make_pool(DType type, std::int64_t page_rows, std::int64_t max_pages) const;

  /// Runs the tokens `ids` behind the cache's present end and appends their rows. Leaves the residual stream
  /// after the last norm in the returned view [ids, d], which lives in `scratch`. `trace`, unless null, gets
  /// the embedding and the stream after each layer, the last one normed: [layers + 1][ids][d] appended.
  /// Throws Error for an id outside the vocabulary; the cache is then as before. (Chapter 3.4.1.)
  MatrixView<float> forward(std::span<const std::int32_t> ids, const ForwardOptions& options,
                            const Rotary& rotary, KvCache& cache, TransformerScratch& scratch,
                            std::vector<float>* trace = nullptr) const;

  /// The form in which forward attends from `tokens` new tokens over `length` rows in all, stored as `rows`.
  /// REQUIRES latent attention: others have no forms.
  MlaForm form_for(const ForwardOptions& options, DType rows, std::int64_t tokens, std::int64_t length) const;

  /// Logits [hidden.rows, vocab] of forward's hidden states.
  void logits(MatrixView<const float> hidden, DType compute, MatrixView<float> out) const;

 private:
  /// What the layers of one forward pass share, and which of them is at work.
  struct Step {
    std::int64_t layer, first_position;
    const Rotary& rotary;
    const ForwardOptions& options;
    KvCache& cache;
  };

  Transformer() = default;
  void set_shapes();
  void embed(std::span<const std::int32_t> ids, MatrixView<float> stream) const;
  void attention(const Step& step, MatrixView<const float> x, TransformerScratch& scratch,
                 MatrixView<float> out) const;
  void layer_forward(const Step& step, TransformerScratch& scratch, MatrixView<float> stream) const;

  ModelConfig config_;
  std::shared_ptr<const Checkpoint> checkpoint_;     // what a loaded model's weights lie in
  std::shared_ptr<const Buffer<std::byte>> memory_;  // what other weights lie in
  ModelWeights weights_;
  MlaShape mla_;      // of latent attention
  HeadsShape heads_;  // of attention with key and value heads
};

}  // namespace mla
