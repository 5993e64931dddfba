#include "mla/model/tokenizer/tiktoken.h"

#include <charconv>
#include <map>
#include <set>

#include "mla/core/error.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {

using nlohmann::json;

namespace {

constexpr std::int64_t num_added = 258;

json added_token(std::int64_t id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

/// The id that a key of added_tokens_decoder says.
std::int64_t id_of_key(const std::string& key, const TokenizerFields& fields, std::int64_t first_id) {
  std::int64_t id = -1;
  const auto [stop, error] = std::from_chars(key.data(), key.data() + key.size(), id);
  require(
      error == std::errc{} && stop == key.data() + key.size() && id >= first_id && id < first_id + num_added,
      "{}: found the id {}, expected {} to {}, which the vocabulary leaves",
      fields.place("added_tokens_decoder"), shown_text(key), first_id, first_id + num_added - 1);
  return id;
}

std::string words() {
  // [...&&[^\p{Han}]] of the original, which regular expressions in tokenizer.json may have as well.
  const std::string upper = "(?:(?!\\p{Han})[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}])";
  const std::string lower = "(?:(?!\\p{Han})[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}])";
  const std::string before = "[^\\r\\n\\p{L}\\p{N}]?", ending = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
  return "\\p{Han}+|" + before + upper + "*" + lower + "+" + ending + "|" + before + upper + "+" + lower +
         "*" + ending + "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
}

}  // namespace

json tiktoken_added_tokens(const json& config, const std::string& source, std::int64_t first_id) {
  TokenizerFields fields(config, source, "");
  if (fields.text("tokenizer_class") != "TikTokenTokenizer")
    fields.wrong("tokenizer_class", "\"TikTokenTokenizer\" beside a tiktoken.model");
  std::map<std::int64_t, json> named;
  std::set<std::string> contents;
  static const json none = json::object();
  const bool has_names = fields.find("added_tokens_decoder") != nullptr;
  for (const auto& [key, value] : (has_names ? fields.object("added_tokens_decoder") : none).items()) {
    TokenizerFields entry(value, source, "added_tokens_decoder." + key);
    const std::string content = entry.text("content");
    if (content.empty() || !contents.insert(content).second)
      entry.wrong("content", "a text that is not empty and no other entry's");
    const std::int64_t id = id_of_key(key, fields, first_id);
    named[id] = added_token(id, content, entry.flag("special", false));
  }
  json all = json::array();
  for (std::int64_t id = first_id; id < first_id + num_added; ++id) {
    const auto name = named.find(id);
    all.push_back(name != named.end() ? name->second
                                      : added_token(id, fmt::format("<|reserved_token_{}|>", id), false));
  }
  return all;
}

const json& tiktoken_pre_tokenizer() {
  static const json value = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", words()}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  return value;
}

const json& tiktoken_decoder() {
  static const json value = {{"type", "ByteLevel"}};
  return value;
}

}  // namespace mla
