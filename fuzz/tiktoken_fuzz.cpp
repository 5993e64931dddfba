// The input is a tiktoken.model; a leading line that begins with '{' is the tokenizer_config.json beside it.
// What parses must encode and decode to the same text, and stream what it decodes.
#include <algorithm>
#include <cstdlib>
#include <string>

#include "mla/core/error.h"
#include "mla/model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  std::string ranks(reinterpret_cast<const char*>(data), size);
  std::string config = R"({"tokenizer_class": "TikTokenTokenizer"})";
  if (ranks.starts_with('{')) {
    const std::size_t end = std::min(ranks.find('\n'), ranks.size());
    config = ranks.substr(0, end);
    ranks.erase(0, end);
  }
  try {
    const auto tokenizer = mla::Tokenizer::parse_tiktoken(ranks, config, "input");
    for (const std::string& text :
         {std::string(), std::string("Hello's,  world 123\n\n"), std::string(300, 'a'),
          std::string(" \xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80 [BOS]a<|reserved_token_300|> ab")}) {
      const auto ids = tokenizer.encode(text);
      mla::StreamDecoder stream(tokenizer, false);
      std::string streamed;
      for (const auto id : ids) streamed += stream.push(id);
      if (streamed + stream.finish() != text || tokenizer.decode(ids, false) != text) std::abort();
    }
  } catch (const mla::Error&) {
  }
  return 0;
}
