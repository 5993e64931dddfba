#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mla/core/file_lock.h"
#include "mla/train/train_log.h"
#include "mla/train/trainer.h"

namespace mla {

/// What a run of training is told; all of it is kept in its directory's training.json.
struct RunOptions {
  std::string config;       ///< text of a config.json, whose vocabulary size the tokenizer gets
  std::string config_name;  ///< names it in errors
  std::string tokenizer;    ///< text of a tokenizer.json; empty: one is learnt from the text
  std::int64_t steps = 2000;
  TrainerOptions trainer;   ///< its schedule's total_steps are `steps`
  double held_back = 0.03;  ///< share of the text's bytes, at its end, that is measured, not trained on
  std::int64_t measure_every = 100;  ///< steps between measurements of the held-back text
};

/// Options of a run of so many steps, as it is usual here: usual_schedule, passes of four sequences where the
/// batch allows it, twenty measurements. Throws Error unless there is a step and a sequence.
RunOptions usual_run(std::int64_t steps, std::int64_t batch, double learning_rate);

/// A measurement.
struct RunMeasure {
  std::int64_t step = 0;
  double bits_per_byte = 0;  ///< of the held-back text, in windows of the training length
  bool is_best = false;      ///< of all so far: model.safetensors holds these weights
};

/// What one step of a run did.
struct RunStep {
  TrainingStep step;
  double tokens_per_second = 0;       ///< since the run began or went on
  std::optional<RunMeasure> measure;  ///< on steps that measure
};

/// A run of training and its directory, which is a model that `mla generate` runs:
///
///   config.json tokenizer.json    from the start
///   training.json                 options, the text's size and checksum, the best measurement
///   model.safetensors             bf16 weights of the best measurement so far
///   training_state.safetensors    weights, optimiser and step of the last measurement
///   train_log.csv loss.svg        every step, and the picture of them
///
/// Each file is written beside and put in place, so a run that is killed at any moment leaves them whole, and
/// resume() goes on from the last measurement to the same bits as a run that never stopped.
class TrainingRun {
 public:
  /// What begin does before it writes anything, and all that it throws for text and options: a run that may
  /// only be asked about.
  static TrainingRun plan(const std::filesystem::path& directory, const std::string& text,
                          const RunOptions& options);
  /// Learns a tokenizer from the training part of `text` (unless one is given), draws weights, and makes
  /// `directory`, all of it or nothing. Throws Error if it is there, for a text that is empty or too short,
  /// and for a config or a tokenizer that is not one.
  static TrainingRun begin(const std::filesystem::path& directory, const std::string& text,
                           const RunOptions& options);
  /// Goes on where `directory` stopped. Throws Error naming the file if there is no run, if it is broken, if
  /// another process is at it, or if `text` is not the one that the run began with.
  static TrainingRun resume(const std::filesystem::path& directory, const std::string& text);

  const RunOptions& options() const { return options_; }
  Trainer& trainer() { return *trainer_; }
  std::int64_t steps() const { return trainer_->steps(); }
  bool is_finished() const { return steps() >= options_.steps; }
  const RunMeasure& best() const { return best_; }
  std::int64_t training_tokens() const { return training_tokens_; }
  std::span<const std::int32_t> held_back() const { return held_back_; }
  std::int64_t held_back_bytes() const { return held_back_bytes_; }

  /// One step, a line of the log, and, where one is due, a measurement of the held-back text: it writes the
  /// model if it is the best so far, then the state and the picture. Throws Error as Trainer::step does; what
  /// is on disk is then that of the last measurement.
  RunStep step();
  /// Writes the state as it is, to go on from here.
  void save();

 private:
  TrainingRun(std::filesystem::path directory, RunOptions options, const std::string& text);
  void begin_log();
  double held_back_bits_per_byte();
  RunMeasure keep(double bits_per_byte);
  void draw_losses() const;
  void write_description() const;

  std::filesystem::path directory_;
  RunOptions options_;
  std::unique_ptr<Trainer> trainer_;
  std::vector<std::int32_t> held_back_;
  std::int64_t text_bytes_ = 0, training_bytes_ = 0, training_tokens_ = 0, held_back_bytes_ = 0;
  std::uint64_t checksum_ = 0;
  RunMeasure best_;
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<TrainLog> log_;
  std::int64_t first_step_ = 0;  // where this process began or went on
  double started_ = 0;
};

}  // namespace mla
