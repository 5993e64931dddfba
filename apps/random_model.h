#pragma once
#include <cstdint>
#include <string>

#include "mla/model/transformer.h"

namespace mla::app {

/// The config that a benchmark's --shape names: one of published_configs(), or that in a directory. Throws
/// Error for any other name.
ModelConfig config_of_shape(const std::string& shape);

/// Bytes that the weights of random_model take.
std::int64_t random_model_bytes(const ModelConfig& config, DType type);

/// A model of normally distributed weights in memory, stored as `type` (f32 or bf16), of variance 1 / inputs,
/// so that the stream neither grows without bound nor fades; norms are ones.
Transformer random_model(const ModelConfig& config, DType type);

}  // namespace mla::app
