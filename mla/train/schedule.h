#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "mla/core/error.h"

namespace mla {

/// Linear warm-up, then half a cosine down to a floor (Loshchilov & Hutter 2017, SGDR, without restarts).
struct Schedule {
  double peak = 1e-3;             ///< the learning rate at step `warmup_steps`
  double floor = 1e-4;            ///< at the last step and beyond
  std::int64_t warmup_steps = 0;  ///< before the peak
  std::int64_t total_steps = 1;
};

/// What small models are trained with here: a tenth of the steps for the warm-up, at most 200, and a
/// twentieth of the peak at the end.
inline Schedule usual_schedule(double peak, std::int64_t steps) {
  return {peak, peak / 20, std::min<std::int64_t>(steps / 10, 200), steps};
}

/// The learning rate of a step, counted from 0. Throws Error for a schedule that isn't one.
inline double learning_rate(const Schedule& schedule, std::int64_t step) {
  const auto& [peak, floor, warmup, total] = schedule;
  require(peak > 0 && std::isfinite(peak) && floor >= 0 && floor <= peak,
          "learning rate: found a peak of {} and a floor of {}, expected 0 <= floor <= peak, peak above 0",
          peak, floor);
  require(
      step >= 0 && warmup >= 0 && warmup < total,
      "learning rate: found step {} of {}, {} of them warm-up, expected step >= 0 and 0 <= warm-up < steps",
      step, total, warmup);
  if (step < warmup) return peak * static_cast<double>(step + 1) / static_cast<double>(warmup + 1);
  const std::int64_t last = total - 1;
  if (step >= last) return last > warmup ? floor : peak;
  const double progress = static_cast<double>(step - warmup) / static_cast<double>(last - warmup);
  return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace mla
