// The input is two bytes, how much to learn and from how many occurrences on, and a text. What is learned
// from it must parse, have as many tokens as it says, at most those asked for, and give the text back.
#include <cstdlib>
#include <optional>
#include <string_view>

#include "mla/core/error.h"
#include "mla/model/tokenizer.h"
#include "mla/train/bpe_trainer.h"

namespace {

constexpr std::int64_t untaught = 258;  // two special tokens and 256 bytes

std::optional<mla::BpeResult> train(std::string_view text, const mla::BpeOptions& options) {
  try {
    return mla::train_bpe(text, options);
  } catch (const mla::Error&) {
    return std::nullopt;
  }
}

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  if (size < 2) return 0;
  const mla::BpeOptions options{untaught - 8 + 4 * std::int64_t{data[0]}, {"<s>", "</s>"}, data[1] % 4};
  const std::string_view text(reinterpret_cast<const char*>(data + 2), size - 2);
  const auto learned = train(text, options);
  if (!learned) return 0;
  const auto tokenizer = mla::Tokenizer::parse(learned->tokenizer_json, "", "what was learned");
  require(learned->vocab_size == tokenizer.vocab_size());
  require(learned->vocab_size == untaught + learned->merges && learned->vocab_size <= options.vocab_size);
  require(tokenizer.decode(tokenizer.encode(text), false) == text);
  return 0;
}
