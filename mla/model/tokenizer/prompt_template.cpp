#include "mla/model/tokenizer/prompt_template.h"

#include "mla/core/error.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {

using nlohmann::json;

PromptTemplate PromptTemplate::parse(const json* value, const std::string& source, std::int64_t vocab_size) {
  PromptTemplate result;
  if (value != nullptr) result.read(*value, source, "post_processor", vocab_size);
  return result;
}

void PromptTemplate::read(const json& value, const std::string& source, const std::string& path,
                          std::int64_t vocab_size) {
  TokenizerFields fields(value, source, path);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    const json& parts = fields.array("processors");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      read(parts[i], source, fmt::format("{}.processors[{}]", path, i), vocab_size);
    }
  } else if (type == "ByteLevel") {  // works on offsets, which we don't keep
    for (const std::string ignored : {"add_prefix_space", "trim_offsets", "use_regex"})
      fields.flag(ignored, true);
  } else if (type == "TemplateProcessing") {
    read_template(fields, vocab_size);
  } else {
    fields.wrong("type", "Sequence, ByteLevel or TemplateProcessing");
  }
  fields.done();
}

void PromptTemplate::read_template(TokenizerFields& fields, std::int64_t vocab_size) {
  static const json none = json::object();
  constexpr std::size_t most_ids = 1024;
  fields.find("pair");
  const json* special = fields.find("special_tokens");
  TokenizerFields tokens(special == nullptr ? none : *special, fields.source(),
                         fields.where("special_tokens"));
  const json& single = fields.array("single");
  std::vector<std::int32_t> before, behind;
  bool text_seen = false;
  for (std::size_t i = 0; i < single.size(); ++i) {
    const std::string path = fmt::format("{}[{}]", fields.where("single"), i);
    TokenizerFields piece(single[i], fields.source(), path);
    if (piece.find("Sequence") != nullptr) {
      TokenizerFields sequence(piece.object("Sequence"), fields.source(), path + ".Sequence");
      if (sequence.text("id") != "A" || text_seen) sequence.wrong("id", "\"A\", and that once");
      text_seen = true;
    } else {
      TokenizerFields named(piece.object("SpecialToken"), fields.source(), path + ".SpecialToken");
      const std::string name = named.text("id");
      TokenizerFields token(tokens.object(name), fields.source(), tokens.where(name));
      for (const json& id : token.array("ids")) {
        const bool good =
            id.is_number_unsigned() && id.get<std::uint64_t>() < static_cast<std::uint64_t>(vocab_size);
        require(good, "{}: found {}, expected ids from 0 to {}", token.place("ids"), shown(id),
                vocab_size - 1);
        (text_seen ? behind : before).push_back(id.get<std::int32_t>());
        if (before.size() + behind.size() > most_ids)
          fields.wrong("single", fmt::format("at most {} ids", most_ids));
      }
    }
    piece.done();
  }
  if (!text_seen) fields.wrong("single", "a template with the sequence A in it");
  before_.insert(before_.begin(), before.begin(), before.end());
  behind_.insert(behind_.end(), behind.begin(), behind.end());
}

void PromptTemplate::configure(const json& config, const std::string& source,
                               const std::function<std::optional<std::int32_t>(std::string_view)>& id_of) {
  TokenizerFields fields(config, source, "");
  const auto token = [&](const std::string& key) -> std::optional<std::int32_t> {
    const json* value = fields.find(key);
    if (value == nullptr) return std::nullopt;
    const std::string text =
        value->is_object() ? TokenizerFields(*value, source, key).text("content") : fields.text(key);
    const auto id = id_of(text);
    require(id.has_value(), "{}: found {}, expected a token of the vocabulary", fields.place(key),
            shown_text(text));
    return id;
  };
  bos_ = token("bos_token");
  eos_ = token("eos_token");
  const auto decide = [&](const std::string& key, const std::string& name, std::optional<std::int32_t> id,
                          std::vector<std::int32_t>& ids) {
    if (fields.find(key) == nullptr) return;
    const bool add = fields.flag(key);
    require(!add || id.has_value(), "{}: found true, but there is no {}", fields.place(key), name);
    ids.clear();
    if (add) ids.push_back(*id);
  };
  decide("add_bos_token", "bos_token", bos_, before_);
  decide("add_eos_token", "eos_token", eos_, behind_);
}

std::optional<std::int32_t> PromptTemplate::bos() const {
  return bos_ || before_.empty() ? bos_ : std::optional(before_.front());
}

std::optional<std::int32_t> PromptTemplate::eos() const {
  return eos_ || behind_.empty() ? eos_ : std::optional(behind_.back());
}

}  // namespace mla
