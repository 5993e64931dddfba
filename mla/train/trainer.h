#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "mla/train/adamw.h"
#include "mla/train/schedule.h"
#include "mla/train/token_data.h"
#include "mla/train/trained_transformer.h"

namespace mla {

struct TrainerOptions {
  std::int64_t length = 256;  ///< tokens of a sequence
  std::int64_t batch = 16;    ///< sequences of a step
  std::int64_t slice = 4;     ///< sequences of one pass; the gradients of a step's passes add up
  Schedule schedule;
  AdamWOptions adamw;
  double clip = 1.0;        ///< the largest norm of a step's gradient
  double bias_rate = 1e-3;  ///< by which a step moves the correction bias of gates (DeepSeek-V3, section 4.2)
  std::uint64_t seed = 0;   ///< of the first weights and of the order of the data
  TrainingOptions computing;
};

/// What a step did.
struct TrainingStep {
  std::int64_t step = 0;  ///< from 1
  double loss = 0;        ///< mean over the step's tokens, in nats, before the step
  double learning_rate = 0;
  double gradient_norm = 0;  ///< before it was clipped
};

/// Trains a model on the tokens of a text, step by step. From the same text, options and seed come the same
/// bits, at any number of threads, and from a restored state as if it had never stopped.
class Trainer {
 public:
  /// Draws the first weights: normal with deviation 0.02 (as initializer_range in a config), ones for norms,
  /// zeros for biases. `ids`: what to train on. Throws Error as TokenData and AdamW do.
  Trainer(const ModelConfig& config, std::vector<std::int32_t> ids, const TrainerOptions& options);

  TrainedTransformer& model() { return model_; }
  const TrainerOptions& options() const { return options_; }
  std::int64_t steps() const { return optimiser_.steps(); }  ///< done so far
  /// How often the text has been gone through.
  double epochs() const { return data_.epochs(steps()); }

  /// One step. Throws Error if the loss or the gradient isn't a finite number; the weights are then those of
  /// the step before.
  TrainingStep step();

  /// Sum of -log p in nats over all of `ids` but the first, in windows of `window` tokens as `mla score`
  /// takes them: each begins with the last token of the one before.
  double surprise(std::span<const std::int32_t> ids, std::int64_t window);

  /// Writes weights, optimiser and step to one file, beside and then in place, with `notes` of the caller.
  void save(const std::filesystem::path& path, const std::vector<std::int64_t>& notes = {0});
  /// Goes on from such a file and returns its notes. Throws Error naming it if it is not one of this model's.
  std::vector<std::int64_t> restore(const std::filesystem::path& path);

  /// Writes the weights as a checkpoint's model.safetensors: f32 or bf16; correction biases stay f32.
  void write_weights(const std::filesystem::path& path, DType type);

 private:
  void draw_weights();

  TrainerOptions options_;
  TrainedTransformer model_;
  TokenData data_;
  AdamW optimiser_;
  TokenBatch batch_;
  TrainingMemory memory_;
};

}  // namespace mla
