#pragma once
#include <cstdint>
#include <vector>

namespace mla {

/// Which pairs of a head's values one angle turns: values 2i and 2i+1 (interleaved), or i and i + dim/2
/// (half_split).
enum class RopeLayout { interleaved, half_split };

/// How frequencies are stretched beyond the trained context.
enum class RopeScaling { none, yarn, longrope, llama3 };

/// Everything that rotary positions depend on, as config.json gives it.
struct RopeSpec {
  std::int64_t dim = 0;  ///< d_r, or the width of a whole head; even; 0: nothing is turned
  double theta = 10000.0;
  RopeLayout layout = RopeLayout::interleaved;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;                ///< of a scaling: how many times the context was stretched
  std::int64_t original_context = 0;  ///< of a scaling: original_max_position_embeddings
  double beta_fast = 32.0;            ///< yarn
  double beta_slow = 1.0;             ///< yarn
  bool truncate = true;               ///< yarn: round the correction range to whole dimensions
  double attention_factor =
      1.0;  ///< multiplies cos and sin (yarn: ratio of the mscales; longrope: from factor)
  double low_freq_factor = 1.0;   ///< llama3: wavelengths above original_context / this are stretched whole
  double high_freq_factor = 4.0;  ///< llama3: wavelengths below original_context / this are kept
  std::vector<double> short_factor;  ///< longrope: dim/2 divisors of the frequencies, up to original_context
  std::vector<double> long_factor;   ///< longrope: the same beyond it
};

/// YaRN's attention temperature 0.1 * mscale * ln(factor) + 1, or 1 when the context is not stretched
/// (Peng et al. 2023, "YaRN", section 3.4; DeepSeek's `yarn_get_mscale`).
double yarn_mscale(double factor, double mscale);

}  // namespace mla
