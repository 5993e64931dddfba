#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "mla/compare/measure.h"
#include "mla/compare/variants.h"
#include "mla/train/run.h"

namespace mla {

/// What all models of a comparison are trained with, beside their sizes.
struct ComparisonOptions {
  ComparisonSizes sizes;
  std::int64_t steps = 0;
  std::int64_t batch = 16;
  std::int64_t length = 256;
  double learning_rate = 2e-3;
  double held_back = 0.03;  ///< share of the text
  std::uint64_t seed = 0;
  DType compute = DType::f32;
};

/// One model of a comparison, trained and measured.
struct ComparedModel {
  Variant variant;
  std::vector<TrainLogRow> log;
  RunMeasure best;  ///< of the held-back text; the weights that `measure` is of
  ModelMeasure measure;
};

struct ComparisonResults {
  ComparisonOptions options;
  std::int64_t text_bytes = 0, held_back_bytes = 0, training_tokens = 0;
  std::string cpu;  ///< that the speeds are of; the caller's to name, as the next two
  std::string date;
  std::string text_name;
  std::vector<ComparedModel> models;
};

/// Models that differ in attention or positions alone, trained on the same tokens in the same order. A
/// comparison is a directory:
///
///   comparison.json    what all are trained with
///   models/NAME/       a TrainingRun each
///
/// begin() and resume() are cheap; run() begins or goes on with one model's training.
class Comparison {
 public:
  /// Throws Error if `directory` is there or the text is empty: what can be said before time is spent.
  static void check_new(const std::filesystem::path& directory, const std::string& text);
  /// Makes `directory`, all of it or nothing, and learns the tokenizer that all models share. Throws Error if
  /// it is there, and as TrainingRun::begin.
  static Comparison begin(const std::filesystem::path& directory, const std::string& text,
                          const ComparisonOptions& options);
  /// Goes on where `directory` stopped. Throws Error naming the file if it is no comparison.
  static Comparison resume(const std::filesystem::path& directory, const std::string& text);

  const ComparisonOptions& options() const { return options_; }
  const std::vector<Variant>& variants() const { return variants_; }
  /// The training of one model, from where it stopped.
  TrainingRun run(const Variant& variant) const;
  /// What became of all of them. Calls `before`, if there is one, before each model; what that throws ends
  /// this. Throws Error if one is not trained to the end.
  ComparisonResults measure(const MeasureOptions& options,
                            const std::function<void(const Variant&)>& before = {}) const;

 private:
  Comparison(std::filesystem::path directory, std::string text, ComparisonOptions options);
  std::filesystem::path model_directory(const Variant& variant) const;

  std::filesystem::path directory_;
  std::string text_;
  ComparisonOptions options_;
  std::vector<Variant> variants_;
};

/// Seconds that one step of each model takes here, all together: what a budget of time is divided by.
double seconds_per_round(const ComparisonOptions& options);

}  // namespace mla
