#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace mla {

/// What a preset's config.json must know of the tokenizer.
struct PresetVocabulary {
  std::int64_t size = 0;
  std::int64_t bos_id = -1;  ///< -1: none
  std::int64_t eos_id = -1;
};

/// The presets' names, smallest first.
std::span<const std::string_view> preset_names();

/// Tokens of the vocabulary that a preset is made for. Throws Error for another name.
std::int64_t preset_vocabulary(std::string_view name);

/// The config.json of a model to train, of the DeepSeek-V3 architecture, with the fields that transformers
/// writes: `tiny`, about one million parameters at a vocabulary of 1024, and `small`, the shape of
/// models/default, six million at 2048. Throws Error for another name, and for ids outside the vocabulary.
std::string preset_config(std::string_view name, const PresetVocabulary& vocabulary);

}  // namespace mla
