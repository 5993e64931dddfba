#include "mla/train/adamw.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"

namespace mla {
namespace {

constexpr std::int64_t block_size = 1 << 14;
constexpr std::int64_t work_per_value = 16;  // roots and divisions, as multiply-adds

// State nearer to zero than this is zero. It decays towards zero where gradients stay away (rows of the
// embedding of rare tokens), and the subnormal numbers at the end of that way cost a hundred cycles each.
// sqrt(2^-120) = 1e-18 is nothing beside epsilon.
constexpr float smallest = 0x1p-120f;

/// What a step does to every value, in f32.
struct StepNumbers {
  float scale, beta1, one_minus_beta1, beta2, one_minus_beta2, keep, rate, root_scale, epsilon;
};

void step_block(const StepNumbers& s, const float* gradients, float* m, float* v, float* values,
                std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = s.scale * gradients[i];
    const float mean = s.beta1 * m[i] + s.one_minus_beta1 * g;
    const float square = s.beta2 * v[i] + s.one_minus_beta2 * (g * g);
    m[i] = std::abs(mean) < smallest ? 0.0f : mean;
    v[i] = square < smallest ? 0.0f : square;
    values[i] = s.keep * values[i] - s.rate * m[i] / (std::sqrt(v[i]) * s.root_scale + s.epsilon);
  }
}

/// Eight sums side by side, for vectors to hold, then added up two by two.
double sum_of_squares(const float* x, std::int64_t n) {
  constexpr std::int64_t lanes = 8;
  double sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (std::int64_t k = 0; k < lanes; ++k)
      sums[k] += static_cast<double>(x[i + k]) * static_cast<double>(x[i + k]);
  }
  for (; i < n; ++i) sums[i % lanes] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void check(const AdamWOptions& options) {
  for (const double beta : {options.beta1, options.beta2})
    require(beta >= 0 && beta < 1, "AdamW: beta: found {}, expected at least 0 and less than 1", beta);
  require(options.epsilon >= 1e-12 && std::isfinite(options.epsilon),
          "AdamW: epsilon: found {}, expected at least 1e-12", options.epsilon);
  require(options.weight_decay >= 0 && std::isfinite(options.weight_decay),
          "AdamW: weight decay: found {}, expected at least 0", options.weight_decay);
}

std::vector<TrainedRange> blocks_of(std::span<const TrainedRange> ranges, std::int64_t size) {
  std::vector<TrainedRange> blocks;
  std::int64_t end = 0;
  for (const TrainedRange& range : ranges) {
    require(range.first >= end && range.size >= 0 && range.first <= size && range.size <= size - range.first,
            "AdamW: range: found {} values from {} on, expected ranges in order, apart and within {} values",
            range.size, range.first, size);
    end = range.first + range.size;
    for (std::int64_t i = range.first; i < end; i += block_size)
      blocks.push_back({i, std::min(block_size, end - i), range.decays});
  }
  return blocks;
}

}  // namespace

double gradient_norm(std::span<const float> gradients) {
  const auto size = static_cast<std::int64_t>(gradients.size());
  const std::int64_t blocks = parts(size, block_size);
  std::vector<double> sums(static_cast<std::size_t>(blocks));
  parallel_for(blocks, block_size, [&](std::int64_t b) {
    const std::int64_t first = b * block_size;
    sums[static_cast<std::size_t>(b)] =
        sum_of_squares(gradients.data() + first, std::min(block_size, size - first));
  });
  double sum = 0;
  for (const double part : sums) sum += part;
  return std::sqrt(sum);
}

double clip_factor(double norm, double limit) {
  require(limit > 0, "gradient clipping: found the limit {}, expected one above 0", limit);
  if (!std::isfinite(norm)) return std::numeric_limits<double>::quiet_NaN();
  return norm > limit ? limit / norm : 1.0;
}

AdamW::AdamW(const AdamWOptions& options, std::int64_t size, std::span<const TrainedRange> ranges)
    : options_(options), blocks_(blocks_of(ranges, size)), m_(size), v_(size) {
  check(options);
}

void AdamW::resume_at(std::int64_t steps) {
  require(steps >= 0, "AdamW: steps taken: found {}, expected 0 or more", steps);
  steps_ = steps;
}

void AdamW::step(std::span<float> values, std::span<const float> gradients, double learning_rate,
                 double gradient_scale) {
  require(static_cast<std::int64_t>(values.size()) == m_.size() && gradients.size() == values.size(),
          "AdamW: found {} values and {} gradients, expected {} of both", values.size(), gradients.size(),
          m_.size());
  require(learning_rate >= 0 && std::isfinite(learning_rate),
          "AdamW: learning rate: found {}, expected a number from 0 on", learning_rate);
  require(gradient_scale >= 0 && std::isfinite(gradient_scale),
          "AdamW: scale of gradients: found {}, expected a number from 0 on (is a gradient not finite?)",
          gradient_scale);
  const auto t = static_cast<double>(++steps_);
  const auto to_f32 = [](double x) { return static_cast<float>(x); };
  StepNumbers numbers{
      to_f32(gradient_scale),
      to_f32(options_.beta1),
      to_f32(1 - options_.beta1),
      to_f32(options_.beta2),
      to_f32(1 - options_.beta2),
      1.0f,
      to_f32(learning_rate / (1 - std::pow(options_.beta1, t))),
      to_f32(1 / std::sqrt(1 - std::pow(options_.beta2, t))),
      to_f32(options_.epsilon),
  };
  const float kept = to_f32(1 - learning_rate * options_.weight_decay);
  const auto count = static_cast<std::int64_t>(blocks_.size());
  parallel_for(count, block_size * work_per_value, [&](std::int64_t b) {
    const TrainedRange& block = blocks_[static_cast<std::size_t>(b)];
    StepNumbers mine = numbers;
    if (block.decays) mine.keep = kept;
    step_block(mine, gradients.data() + block.first, m_.data() + block.first, v_.data() + block.first,
               values.data() + block.first, block.size);
  });
}

}  // namespace mla
