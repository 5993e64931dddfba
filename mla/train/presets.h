#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace mla {

/// What a preset's config.json must know of the tokenizer: one that a run learns, unless it says otherwise.
struct PresetVocabulary {
  std::int64_t size = 0;    ///< tokens; 0: as many as the preset is made for
  std::int64_t bos_id = 0;  ///< -1: none
  std::int64_t eos_id = 1;
};

/// The presets' names, smallest first.
std::span<const std::string_view> preset_names();

/// The config.json of a model to train, of the DeepSeek-V3 architecture, with the fields that transformers
/// writes: `tiny`, about one million parameters at a vocabulary of 1024, and `small`, the shape of
/// models/default, six million at 2048. Throws Error for another name, and for ids outside the vocabulary.
std::string preset_config(std::string_view name, PresetVocabulary vocabulary = {});

}  // namespace mla
