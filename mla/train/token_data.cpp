#include "mla/train/token_data.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "mla/core/error.h"
#include "mla/core/random.h"

namespace mla {

TokenData::TokenData(std::vector<std::int32_t> ids, const TokenDataOptions& options)
    : ids_(std::move(ids)), options_(options) {
  constexpr std::int64_t most = std::int64_t{1} << 30;
  require(options.length >= 1 && options.length <= most, "sequence length: found {}, expected 1 to 2^30",
          options.length);
  require(options.batch >= 1 && options.batch <= most, "batch: found {}, expected 1 to 2^30", options.batch);
  require(options.held_back >= 0 && options.held_back < 1,
          "held-back share: found {}, expected at least 0 and less than 1", options.held_back);
  const auto all = static_cast<std::int64_t>(ids_.size());
  const auto held_back = static_cast<std::int64_t>(static_cast<double>(all) * options.held_back);
  const std::int64_t training = all - held_back;
  require(training >= options.length + 1,
          "text to train on: found {} tokens, expected at least {}: one sequence and the token after it",
          training, options.length + 1);
  require(options.held_back == 0 || held_back >= 2,
          "held-back text: found {} tokens, the share {} of {}, expected at least 2", held_back,
          options.held_back, all);
  training_ = static_cast<std::size_t>(training);
  // So many fit from every offset below the length on; a text shorter than two has one, wherever it fits.
  windows_ = std::max<std::int64_t>(1, (training - options.length) / options.length);
}

double TokenData::epochs(std::int64_t step) const {
  return static_cast<double>(step) * static_cast<double>(options_.batch) / static_cast<double>(windows_);
}

void TokenData::begin_epoch(std::int64_t epoch) {
  if (epoch == epoch_) return;
  RandomStream random(options_.seed, static_cast<std::uint64_t>(epoch));
  const std::int64_t room = static_cast<std::int64_t>(training_) - windows_ * options_.length;
  offset_ = random.below(std::min(room, options_.length));
  order_.resize(static_cast<std::size_t>(windows_));
  std::iota(order_.begin(), order_.end(), 0);
  for (std::int64_t i = windows_ - 1; i > 0; --i) std::swap(order_[i], order_[random.below(i + 1)]);
  epoch_ = epoch;
}

void TokenData::read(std::int64_t step, TokenBatch& batch) {
  require(step >= 0 && step < (std::int64_t{1} << 32), "step: found {}, expected 0 to 2^32 - 1", step);
  batch.inputs.clear();
  batch.targets.clear();
  for (std::int64_t i = 0; i < options_.batch; ++i) {
    const std::int64_t sequence = step * options_.batch + i;
    begin_epoch(sequence / windows_);
    const std::int64_t window = order_[static_cast<std::size_t>(sequence % windows_)];
    const auto first = ids_.begin() + offset_ + window * options_.length;
    batch.inputs.insert(batch.inputs.end(), first, first + options_.length);
    batch.targets.insert(batch.targets.end(), first + 1, first + options_.length + 1);
  }
}

}  // namespace mla
