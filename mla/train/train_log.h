#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mla {

/// What is written of one step.
struct TrainLogRow {
  std::int64_t step = 0;    ///< steps taken so far
  std::int64_t tokens = 0;  ///< tokens trained on so far
  double loss = 0;          ///< nats per token, of this step's batch
  double learning_rate = 0;
  double gradient_norm = 0;  ///< before clipping
  double tokens_per_second = 0;
  std::optional<double> held_back;  ///< bits per byte of the held-back text, on steps that measure it
};

/// A train_log.csv that grows by a line a step. A line is handed to the system as soon as it is appended: a
/// kill loses none and leaves at most the last one unfinished.
class TrainLog {
 public:
  /// Begins the file anew (`resumed_step` 0), or cuts it back to the rows of steps up to `resumed_step`, by
  /// writing it anew beside and renaming. Throws Error naming the file, and the line if it can't be read.
  explicit TrainLog(const std::filesystem::path& path, std::int64_t resumed_step = 0);
  TrainLog(const TrainLog&) = delete;
  TrainLog& operator=(const TrainLog&) = delete;
  ~TrainLog();

  /// Throws Error naming the file if it can't be written.
  void append(const TrainLogRow& row);

 private:
  std::string source_;
  int fd_ = -1;
};

/// The rows of a log: a line that a kill left unfinished at the end is not one. `source` names it in errors;
/// Error names the line too, what was found and what was expected.
std::vector<TrainLogRow> parse_train_log(std::string_view text, const std::string& source);

/// The losses over steps, both in bits per byte: an SVG file. `bytes_per_token`, of the text that is trained
/// on, turns the one into the other. Of long runs the training loss is drawn as means of successive steps.
/// Throws Error unless bytes_per_token is above 0.
std::string loss_curve_svg(std::span<const TrainLogRow> rows, double bytes_per_token,
                           const std::string& title = "Loss");

}  // namespace mla
