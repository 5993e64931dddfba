// The input is a tokenizer.json. What parses must encode and decode without harm, and stream what it decodes.
#include <cstdlib>
#include <string>

#include "mla/core/error.h"
#include "mla/model/tokenizer.h"

namespace {

void use(const mla::Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.encode_prompt(text);
  for (const bool skip_special : {true, false}) {
    mla::StreamDecoder stream(tokenizer, skip_special);
    std::string streamed;
    for (const auto id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    if (streamed != tokenizer.decode(ids, skip_special)) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string json(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = mla::Tokenizer::parse(json, "", "input");
    for (const std::string text :
         {"", "Hello,  world 123\n\n", " \xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80 <s>a</s> ab"}) {
      try {
        use(tokenizer, text);
      } catch (const mla::Error&) {
      }
    }
    use(tokenizer, std::string(300, 'a'));
  } catch (const mla::Error&) {
  }
  return 0;
}
