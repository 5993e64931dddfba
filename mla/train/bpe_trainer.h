#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mla {

/// What vocabulary train_bpe learns.
struct BpeOptions {
  std::int64_t vocab_size = 0;  ///< most tokens: special ones, 256 bytes, the rest learned
  std::vector<std::string>
      special_tokens;          ///< get the ids from 0 on; never learned from, even if in the text
  std::int64_t min_count = 1;  ///< a pair that occurs less often isn't merged
};

/// A vocabulary that was learned.
struct BpeResult {
  std::string tokenizer_json;   ///< the text of the file, for Tokenizer::parse and the `tokenizers` library
  std::int64_t vocab_size = 0;  ///< what it has: less than asked for if the text has no more to merge
  std::int64_t merges = 0;
};

/// Learns a byte-level BPE vocabulary with DeepSeek-V3's pre-tokenizer (Sennrich et al. 2016, "Neural Machine
/// Translation of Rare Words with Subword Units"; GPT-2 for the bytes). Again and again the two neighbouring
/// tokens that occur most often in the text become a token; of equally frequent pairs that with the lower
/// left id, then the lower right id, as in `tokenizers`. The same text and options give the same bytes.
///
/// A text is cut into words by the code that encodes it later: what is counted at any time is the text as
/// the vocabulary so far encodes it. Throws Error if the text isn't UTF-8 (naming the byte) or has no words,
/// if vocab_size is below 256 + special tokens or above what a vocabulary holds, or for a special token that
/// is empty, not UTF-8, there twice or spells a byte.
BpeResult train_bpe(std::string_view text, const BpeOptions& options);

}  // namespace mla
