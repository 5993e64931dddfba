#include "mla/model/tokenizer/normalizer.h"

#include "mla/core/error.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {

using nlohmann::json;

void check_growth(std::size_t before, std::size_t after) {
  require(after / 64 <= before + 1024,
          "the tokenizer's steps make {} bytes of {}: they lengthen the text without bound", after, before);
}

TextPattern::TextPattern(const json* value, const std::string& source, const std::string& path) {
  require(value != nullptr, "{}: {}: found nothing, expected {{\"String\": ...}} or {{\"Regex\": ...}}",
          source, path);
  TokenizerFields fields(*value, source, path);
  const std::string kind = fields.find("String") != nullptr ? "String" : "Regex";
  const std::string text = fields.text(kind);
  if (text.empty()) fields.wrong(kind, "a pattern that isn't empty");
  fields.done();
  if (kind == "Regex") {
    regex_.emplace(text, fields.place(kind));
  } else {
    literal_ = text;
  }
}

void TextPattern::find_all(std::string_view text, std::vector<Span>& matches) const {
  matches.clear();
  if (regex_) return regex_->find_all(text, matches);
  for (std::size_t at = text.find(literal_); at != std::string_view::npos;
       at = text.find(literal_, at + literal_.size())) {
    matches.push_back({at, at + literal_.size()});
  }
}

std::string TextPattern::replace(std::string_view text, std::string_view content) const {
  std::vector<Span> matches;
  find_all(text, matches);
  check_growth(text.size(), text.size() + matches.size() * content.size());
  std::string result;
  result.reserve(text.size() + matches.size() * content.size());
  std::size_t copied = 0;
  for (const Span& match : matches) {
    result += text.substr(copied, match.begin - copied);
    result += content;
    copied = match.end;
  }
  result += text.substr(copied);
  return result;
}

Normalizer Normalizer::parse(const json* value, const std::string& source) {
  Normalizer normalizer;
  if (value != nullptr) normalizer.read(*value, source, "normalizer");
  return normalizer;
}

void Normalizer::read(const json& value, const std::string& source, const std::string& path) {
  TokenizerFields fields(value, source, path);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    const json& parts = fields.array("normalizers");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      read(parts[i], source, fmt::format("{}.normalizers[{}]", path, i));
    }
  } else if (type == "Prepend") {
    steps_.push_back({std::nullopt, fields.text("prepend")});
  } else if (type == "Replace") {
    TextPattern pattern(fields.find("pattern"), source, fields.where("pattern"));
    const std::string content = fields.text("content");
    if (pattern.is_regex() && content.find('$') != std::string::npos) {
      fields.wrong("content", "no reference to a group ($)");
    }
    steps_.push_back({std::move(pattern), content});
  } else {
    fields.wrong("type", "Sequence, Prepend or Replace");
  }
  fields.done();
}

std::string Normalizer::apply(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    if (step.replaced) {
      result = step.replaced->replace(result, step.content);
    } else if (!result.empty()) {
      result = step.content + result;
    }
    check_growth(text.size(), result.size());
  }
  return result;
}

}  // namespace mla
