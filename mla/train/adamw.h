#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "mla/core/buffer.h"

namespace mla {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
};

/// Values of a flat array that are trained alike. Matrices decay, vectors of norms and biases don't.
struct TrainedRange {
  std::int64_t first = 0;
  std::int64_t size = 0;
  bool decays = true;
};

/// The square root of the sum of squares, summed in double over fixed blocks that are added in order: the
/// same bits at any number of threads. NaN or infinite if a gradient is: look before stepping.
double gradient_norm(std::span<const float> gradients);

/// What to multiply gradients of this norm by so that their norm is at most `limit` (Pascanu et al. 2013);
/// NaN, which AdamW::step refuses, for a norm that isn't finite. Throws Error unless limit > 0.
double clip_factor(double norm, double limit);

/// AdamW (Loshchilov & Hutter 2019, algorithm 2) over a flat array, with corrected bias, the decay multiplied
/// by the learning rate:
///   m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
///   w = w (1 - lr decay) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
/// Element by element in f32, with basic operations alone: the same bits at any number of threads and on each
/// instruction set.
class AdamW {
 public:
  /// Trains `ranges` of an array of `size` values, and leaves the rest alone. Throws Error unless the betas
  /// are in [0, 1), epsilon is at least 1e-12 and the decay at least 0, and the ranges are in order, apart
  /// and inside.
  AdamW(const AdamWOptions& options, std::int64_t size, std::span<const TrainedRange> ranges);

  /// One step along `gradients`, each multiplied by `gradient_scale` first (clip_factor; a mean over tokens).
  /// Throws Error, before anything changes, for spans of another size and for a learning rate or scale that
  /// isn't a finite number from 0 on.
  void step(std::span<float> values, std::span<const float> gradients, double learning_rate,
            double gradient_scale);

  /// Steps taken so far: t of the last one.
  std::int64_t steps() const { return steps_; }
  /// The state m and v, to be saved; and filled to go on with, together with resume_at.
  std::span<float> first_moments() { return m_.span(); }
  std::span<float> second_moments() { return v_.span(); }
  void resume_at(std::int64_t steps);

 private:
  AdamWOptions options_;
  std::vector<TrainedRange> blocks_;  // the ranges, cut to a size that one thread takes at a time
  std::int64_t steps_ = 0;
  Buffer<float> m_, v_;
};

}  // namespace mla
