// config.json from anyone: parse_config either gives a config within its bounds or throws mla::Error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "mla/core/error.h"
#include "mla/model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const mla::ModelConfig config =
        mla::parse_config({reinterpret_cast<const char*>(data), size}, "config.json");
    // What the engine relies on.
    const bool is_attention_sound =
        config.attention == mla::AttentionKind::latent
            ? config.latent_width() > 0
            : config.head_dim > 0 && config.num_heads % config.num_kv_heads == 0 &&
                  (config.position != mla::PositionKind::rotary || config.rope.dim == config.head_dim);
    const bool is_sound = config.num_layers == static_cast<std::int64_t>(config.layer_is_moe.size()) &&
                          config.rope.dim % 2 == 0 && config.softmax_scale > 0.0 && is_attention_sound &&
                          config.moe.groups_kept * (config.moe.num_experts / config.moe.num_groups) >=
                              config.moe.experts_per_token;
    if (!is_sound) std::abort();
  } catch (const mla::Error&) {
  }
  return 0;
}
