#include "mla/model/tokenizer/added_tokens.h"

#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {

using nlohmann::json;

namespace {

const Regex& space_character() {
  static const Regex regex("\\s", "built in");
  return regex;
}

/// As Rust's regular expressions see it; Oniguruma's \w has a few characters more.
const Regex& word_character() {
  static const Regex regex("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200C\\u200D]", "built in");
  return regex;
}

/// Where the character that ends at `end` (> 0) begins.
std::size_t character_before(std::string_view text, std::size_t end) {
  std::size_t begin = end - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

std::size_t spaces_before(std::string_view text, std::size_t end, std::size_t least) {
  while (end > least) {
    const std::size_t begin = character_before(text, end);
    if (!space_character().matches(text.substr(begin, end - begin))) break;
    end = begin;
  }
  return std::max(end, least);
}

std::size_t spaces_behind(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    const std::size_t length = utf8_step(text, at).length;
    if (!space_character().matches(text.substr(at, length))) break;
    at += length;
  }
  return at;
}

AddedToken read_token(const json& value, const std::string& source, std::size_t index) {
  TokenizerFields fields(value, source, fmt::format("added_tokens[{}]", index));
  AddedToken token;
  token.content = fields.text("content");
  if (token.content.empty()) fields.wrong("content", "a text that isn't empty");
  token.id = static_cast<std::int32_t>(fields.number("id", 0, Vocabulary::max_id));
  token.single_word = fields.flag("single_word", false);
  token.lstrip = fields.flag("lstrip", false);
  token.rstrip = fields.flag("rstrip", false);
  token.special = fields.flag("special", false);
  token.normalized = fields.flag("normalized", !token.special);
  fields.done();
  return token;
}

}  // namespace

void TextFinder::add(std::string_view text, std::size_t index) {
  first_[static_cast<unsigned char>(text[0])] = true;
  std::uint32_t node = 0;
  for (const char byte : text) {
    const std::uint64_t key = static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(byte);
    const auto [child, is_new] = children_.emplace(key, static_cast<std::uint32_t>(ends_.size()));
    if (is_new) ends_.push_back(std::string_view::npos);
    node = child->second;
  }
  ends_[node] = index;
}

std::size_t TextFinder::find(std::string_view text, std::size_t at, std::size_t& end) const {
  std::size_t found = std::string_view::npos;
  std::uint32_t node = 0;
  while (at < text.size()) {
    const auto child =
        children_.find(static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(text[at]));
    if (child == children_.end()) break;
    node = child->second;
    ++at;
    if (ends_[node] == std::string_view::npos) continue;
    found = ends_[node];
    end = at;
  }
  return found;
}

AddedTokens AddedTokens::parse(const json* value, const std::string& source, const Normalizer& normalizer,
                               const Vocabulary& vocabulary) {
  AddedTokens added;
  if (value == nullptr) return added;
  require(value->is_array(), "{}: added_tokens: found {}, expected an array", source, shown(*value));
  for (std::size_t i = 0; i < value->size(); ++i) {
    AddedToken token = read_token((*value)[i], source, i);
    const auto known = vocabulary.find(token.content);
    const std::string* holder = vocabulary.token(token.id);
    if (known ? *known != token.id : holder != nullptr) {
      fail("{}: added_tokens[{}]: {} has the id {}, but in model.vocab {}", source, i,
           shown_text(token.content), token.id,
           known ? fmt::format("it has the id {}", *known) : "that id is " + shown_text(*holder));
    }
    const bool is_new =
        added.by_content_.emplace(token.content, i).second && added.by_id_.emplace(token.id, i).second;
    require(is_new, "{}: added_tokens[{}]: {} with the id {} repeats a text or an id", source, i,
            shown_text(token.content), token.id);
    added.tokens_.push_back(std::move(token));
  }
  for (const bool special :
       {true, false}) {  // of equal normalized texts the last one counts, special tokens before others
    for (std::size_t i = 0; i < added.tokens_.size(); ++i) {
      AddedToken& token = added.tokens_[i];
      if (token.special != special) continue;
      token.text = token.normalized ? normalizer.apply(token.content) : token.content;
      if (token.text.empty()) {
        fail("{}: added_tokens[{}]: nothing is left of {} after normalization", source, i,
             shown_text(token.content));
      }
      (token.normalized ? added.normalized_ : added.raw_).add(token.text, i);
    }
  }
  return added;
}

const AddedToken* AddedTokens::find(std::int32_t id) const {
  const auto place = by_id_.find(id);
  return place == by_id_.end() ? nullptr : &tokens_[place->second];
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto place = by_content_.find(std::string(content));
  return place == by_content_.end() ? nullptr : &tokens_[place->second];
}

bool AddedTokens::touches_word(std::string_view text, std::size_t begin, std::size_t end) const {
  if (begin > 0) {
    const std::size_t before = character_before(text, begin);
    if (word_character().matches(text.substr(before, begin - before))) return true;
  }
  return end < text.size() && word_character().matches(text.substr(end, utf8_step(text, end).length));
}

void AddedTokens::split(std::string_view text, bool normalized, std::vector<Part>& parts) const {
  const TextFinder& finder = normalized ? normalized_ : raw_;
  parts.clear();
  std::size_t done = 0;
  for (std::size_t at = finder.empty() ? text.size() : 0; at < text.size();) {
    std::size_t end = at;
    const std::size_t index = finder.begins(text[at]) ? finder.find(text, at, end) : std::string_view::npos;
    if (index == std::string_view::npos) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    std::size_t begin = at;
    at = end;
    if (token.single_word && touches_word(text, begin, end)) continue;
    if (token.lstrip) begin = spaces_before(text, begin, std::min(begin, done));
    if (token.lstrip) begin = std::max(begin, done);
    if (token.rstrip) end = spaces_behind(text, end);
    if (done < begin) parts.push_back({done, begin, -1});
    parts.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), -1});
}

}  // namespace mla
