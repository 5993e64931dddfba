#pragma once
#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace mla {

struct SamplerOptions {
  double temperature = 0.0;  ///< 0: greedy, the lowest id among equals
  std::int64_t top_k = 0;    ///< 0: all
  double top_p = 1.0;  ///< keep the fewest tokens whose probabilities reach this sum (Holtzman et al. 2020)
  std::uint64_t seed = 0;
};

/// Draws the next token from logits. The same options, logits and seed give the same ids on every machine.
class Sampler {
 public:
  /// Throws Error unless temperature >= 0, top_k >= 0 and 0 < top_p <= 1.
  explicit Sampler(const SamplerOptions& options);

  /// The next id. Throws Error if there are no logits or the largest is not a number.
  std::int32_t next(std::span<const float> logits);

 private:
  struct Candidate {
    double weight;
    std::int32_t id;
  };

  SamplerOptions options_;
  std::mt19937_64 random_;
  std::vector<Candidate> candidates_;
};

}  // namespace mla
