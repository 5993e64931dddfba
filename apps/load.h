#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "mla/model/tokenizer.h"
#include "mla/model/transformer.h"
#include "mla/runtime/session.h"

namespace mla::app {

/// `model`, or the directory of the model that ships with the program. Throws Error if there is none.
std::filesystem::path model_directory(const std::string& model);

/// Loads the model, says first if it does not fit into memory, reads its files in with progress, and warns on
/// standard error of config fields that nobody knows.
Transformer load_model(const ModelOptions& options);

/// How a conversation of at most `max_tokens` tokens runs (0: the model's context limit).
SessionOptions session_options(const ModelOptions& options, const Transformer& model,
                               std::int64_t max_tokens);

/// "1,2,3" as ids. Throws Error naming what is not a number.
std::vector<std::int32_t> parse_ids(const std::string& text);

/// The ids that a command is to run: --ids, else the text with what the tokenizer puts before it, else
/// `otherwise`. `tokenizer` is loaded from `directory` if there is text to encode.
std::vector<std::int32_t> input_ids(const InputOptions& input, const std::string& otherwise,
                                    const std::filesystem::path& directory,
                                    std::optional<Tokenizer>& tokenizer);

}  // namespace mla::app
