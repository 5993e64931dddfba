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

/// What families differ in.
struct RopeRules {
  const char* dim_field;  ///< the field that gives dim
  double default_theta;   ///< of a missing rope_theta; 0: that is an error
  bool is_llama;          ///< scaled by llama3 instead of yarn or longrope
};

/// Reads `rope_parameters` (the newer form) or `rope_theta` and `rope_scaling` (the older one); if both are
/// there they must say the same. Defaults and derived factors follow transformers: YaRN's attention factor is
/// attention_factor, else mscale(factor, mscale) / mscale(factor, mscale_all_dim) if both are given and not
/// 0, else mscale(factor, 1); longrope's factor is max_context / original_max_position_embeddings if it isn't
/// given, and its attention factor sqrt(1 + ln(factor) / ln(original)). `dim` must be even; the layout is the
/// caller's to set.
RopeFields read_rope(JsonFields& config, const RopeRules& rules, std::int64_t dim, std::int64_t max_context);

}  // namespace mla
