#include "mla/model/sampler.h"

#include <algorithm>
#include <cmath>

#include "mla/core/error.h"

namespace mla {

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  require(options.temperature >= 0 && std::isfinite(options.temperature),
          "temperature: found {}, expected 0 or more", options.temperature);
  require(options.top_k >= 0, "top-k: found {}, expected 0 or more", options.top_k);
  require(options.top_p > 0 && options.top_p <= 1, "top-p: found {}, expected more than 0, at most 1",
          options.top_p);
}

std::int32_t Sampler::next(std::span<const float> logits) {
  require(!logits.empty(), "sampler: no logits");
  const auto top = static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  require(std::none_of(logits.begin(), logits.end(), [](float x) { return std::isnan(x); }) &&
              std::isfinite(logits[top]),
          "sampler: the logits are not numbers (a broken checkpoint?)");
  if (options_.temperature == 0 || options_.top_k == 1) return top;

  candidates_.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((static_cast<double>(logits[i]) - logits[top]) / options_.temperature);
    candidates_[i] = {weight, static_cast<std::int32_t>(i)};
  }
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
  };
  std::sort(candidates_.begin(), candidates_.end(), better);
  if (options_.top_k > 0 && options_.top_k < static_cast<std::int64_t>(candidates_.size())) {
    candidates_.resize(static_cast<std::size_t>(options_.top_k));
  }
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  double kept = 0;
  std::size_t count = 0;
  while (count < candidates_.size() && (count == 0 || kept < options_.top_p * total))
    kept += candidates_[count++].weight;

  // 53 random bits as a number in [0, 1): the standard distributions differ from library to library.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    left -= candidates_[i].weight;
    if (left < 0) return candidates_[i].id;
  }
  return candidates_[count - 1].id;
}

}  // namespace mla
