#pragma once
#include "mla/model/config.h"
#include "mla/model/config_fields.h"

namespace mla {

/// Reads what config.json says about mixtures of experts into `config.moe` and `config.layer_is_moe`, where
/// every layer is dense before. Without n_routed_experts they stay so.
void read_experts(JsonFields& fields, GateKind gate, ModelConfig& config);

}  // namespace mla
