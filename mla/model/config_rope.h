#pragma once
#include <cstdint>

#include "mla/model/config_fields.h"
#include "mla/position/rope_spec.h"

namespace mla {

/// What config.json says about rotary positions, and what follows for the softmax.
struct RopeFields {
  RopeSpec spec;
  double softmax_factor = 1.0;  ///< yarn: mscale(factor, mscale_all_dim)^2 if mscale_all_dim is given
};

/// Reads `rope_parameters` (the newer form) or `rope_theta` and `rope_scaling` (the older one); if both are
/// there they must say the same. Defaults and derived factors follow transformers: YaRN's attention factor is
/// attention_factor, else mscale(factor, mscale) / mscale(factor, mscale_all_dim) if both are given and not
/// 0, else mscale(factor, 1); longrope's factor is max_context / original_max_position_embeddings if it isn't
/// given, and its attention factor sqrt(1 + ln(factor) / ln(original)). A missing rope_theta is
/// `default_theta`, or an error if that is 0. `dim` is d_r and must be even; the layout is the caller's to
/// set.
RopeFields read_rope(JsonFields& config, std::int64_t dim, std::int64_t max_context, double default_theta);

}  // namespace mla
