#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "mla/compare/head_diversity.h"

namespace mla {

/// How fast a model generates.
struct DecodeSpeed {
  std::int64_t context = 0;  ///< tokens in the cache
  double tokens_per_second = 0;
};

/// What a trained model is measured for, beyond its loss.
struct ModelMeasure {
  double cache_bytes_per_token = 0;  ///< that the pages of a conversation hold, bf16
  std::vector<DecodeSpeed> decode;
  std::vector<HeadDiversity> layers;
};

/// What of it is measured.
struct MeasureOptions {
  std::vector<std::int64_t> contexts = {256,
                                        4096};  ///< multiples of 64, at most the model's context less one
  double seconds = 0.5;                         ///< of each speed
  std::int64_t length = 256;                    ///< tokens of the sequences that heads are watched on
  std::int64_t sequences = 8;                   ///< at most
};

/// Measures the model in `directory` on `ids`, a text that it was not trained on: decodes one token at a time
/// behind it (repeated until it is long enough), as `mla generate` does, with bf16 products and rows; and
/// watches the heads of each layer on its first sequences. Throws Error as Transformer::load does, and for a
/// text shorter than a sequence.
ModelMeasure measure_model(const std::filesystem::path& directory, std::span<const std::int32_t> ids,
                           const MeasureOptions& options);

}  // namespace mla
