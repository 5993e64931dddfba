// mla tokenize: text to ids and back.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "mla/core/error.h"
#include "mla/core/json.h"

namespace mla::app {
namespace {

using nlohmann::json;

/// One JSON string per line in, one JSON array of ids per line out.
void encode_lines(const Tokenizer& tokenizer) {
  std::string line;
  for (std::int64_t number = 1; std::getline(std::cin, line); ++number) {
    const std::string source = fmt::format("standard input, line {}", number);
    const json text = parse_json(line, source);
    require(text.is_string(), "{}: found {}, expected a JSON string", source, text.type_name());
    say(json(tokenizer.encode(text.get_ref<const std::string&>())).dump() + "\n");
  }
}

}  // namespace

void tokenize(const TokenizeOptions& options) {
  require(options.lines || options.input.text || options.input.ids,
          "tokenize: expected --text, --ids or --lines");
  const Tokenizer tokenizer = Tokenizer::load(model_directory(options.model));
  if (options.lines) return encode_lines(tokenizer);
  if (options.input.ids) {
    const std::string text = tokenizer.decode(parse_ids(*options.input.ids), false);
    return say((options.json ? json{{"text", text}}.dump() : text) + "\n");
  }
  const std::vector<std::int32_t> ids = tokenizer.encode(*options.input.text);
  say((options.json ? json{{"ids", ids}}.dump() : fmt::format("{}", fmt::join(ids, ","))) + "\n");
}

}  // namespace mla::app
