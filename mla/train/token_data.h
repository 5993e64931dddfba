#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace mla {

struct TokenDataOptions {
  std::int64_t length = 256;  ///< tokens of a sequence that is trained on
  std::int64_t batch = 16;    ///< sequences of a step
  double held_back = 0.03;    ///< share of the text, at its end, that isn't trained on
  std::uint64_t seed = 0;
};

/// The sequences of a step, one after another: the target of each token is the one that follows it.
struct TokenBatch {
  std::vector<std::int32_t> inputs, targets;  ///< [batch * length]
};

/// A text as token ids, and the batches to train on. In each epoch the training part is cut into windows of
/// `length` + 1 ids that overlap by one, from a random offset on, so that borders differ from epoch to epoch
/// (less than two windows in all are left out at the ends), and the windows are taken in random order. Which
/// ones a step gets depends on the seed and the step alone, on every machine.
class TokenData {
 public:
  /// Throws Error unless the options make sense, the training part has at least length + 1 ids and the
  /// held-back part, unless its share is 0, at least 2.
  TokenData(std::vector<std::int32_t> ids, const TokenDataOptions& options);

  std::span<const std::int32_t> training() const { return std::span(ids_).first(training_); }
  std::span<const std::int32_t> held_back() const { return std::span(ids_).subspan(training_); }
  std::int64_t windows_per_epoch() const { return windows_; }
  /// How often the training part has been gone through before `step`.
  double epochs(std::int64_t step) const;

  /// The sequences of `step`, counted from 0. A batch may reach from one epoch into the next. Cheapest in the
  /// order of steps: the order of an epoch is kept.
  void read(std::int64_t step, TokenBatch& batch);

 private:
  void begin_epoch(std::int64_t epoch);

  std::vector<std::int32_t> ids_;
  TokenDataOptions options_;
  std::size_t training_ = 0;  // ids of the training part
  std::int64_t windows_ = 0;
  std::int64_t epoch_ = -1;  // whose offset and order these are
  std::int64_t offset_ = 0;
  std::vector<std::int64_t> order_;
};

}  // namespace mla
