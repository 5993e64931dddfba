#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace mla {

// What a checkpoint with a tiktoken.model has in the code of its tokenizer instead of a tokenizer.json:
// Kimi's (TikTokenTokenizer in tokenization_kimi.py of moonshotai/Kimi-K2-Instruct), the only one known here.
// Each is the field of that name of the tokenizer.json that would say the same.

/// `added_tokens`: those that added_tokens_decoder of a tokenizer_config.json names, from the first id behind
/// the vocabulary on, and `<|reserved_token_ID|>` wherever it names none; 258 in all. Throws Error naming
/// file and field if the config is for another class of tokenizers, or if an entry is broken.
nlohmann::json tiktoken_added_tokens(const nlohmann::json& config, const std::string& source,
                                     std::int64_t first_id);

/// `pre_tokenizer`: runs of Chinese characters; words with the character before them and an English ending
/// behind; up to three digits; the rest.
const nlohmann::json& tiktoken_pre_tokenizer();

/// `decoder`.
const nlohmann::json& tiktoken_decoder();

}  // namespace mla
