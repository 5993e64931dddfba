#include "mla/model/tokenizer/fields.h"

#include "mla/core/error.h"

namespace mla {

using nlohmann::json;

std::string shown(const json& value) {
  constexpr std::size_t longest = 60;
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > longest) text = text.substr(0, longest) + "...";
  return text;
}

std::string shown_text(std::string_view text) {
  return shown(json(text));
}

TokenizerFields::TokenizerFields(const json& value, const std::string& source, const std::string& path)
    : value_(value), source_(source), path_(path) {
  if (!value.is_object()) wrong("", "an object");
}

const json* TokenizerFields::find(const std::string& key) {
  asked_.insert(key);
  const auto field = value_.find(key);
  return field == value_.end() || field->is_null() ? nullptr : &*field;
}

const json& TokenizerFields::array(const std::string& key) {
  const json* field = find(key);
  if (field == nullptr || !field->is_array()) wrong(key, "an array");
  return *field;
}

const json& TokenizerFields::object(const std::string& key) {
  const json* field = find(key);
  if (field == nullptr || !field->is_object()) wrong(key, "an object");
  return *field;
}

std::string TokenizerFields::text(const std::string& key) {
  const json* field = find(key);
  if (field == nullptr || !field->is_string()) wrong(key, "a string");
  return field->get<std::string>();
}

bool TokenizerFields::flag(const std::string& key) {
  const json* field = find(key);
  if (field == nullptr || !field->is_boolean()) wrong(key, "true or false");
  return field->get<bool>();
}

bool TokenizerFields::flag(const std::string& key, bool missing) {
  return find(key) == nullptr ? missing : flag(key);
}

std::int64_t TokenizerFields::number(const std::string& key, std::int64_t low, std::int64_t high) {
  const json* field = find(key);
  const bool inside = field != nullptr && field->is_number_integer() &&
                      (!field->is_number_unsigned() || field->get<std::uint64_t>() <= INT64_MAX) &&
                      field->get<std::int64_t>() >= low && field->get<std::int64_t>() <= high;
  if (!inside) wrong(key, fmt::format("an integer from {} to {}", low, high));
  return field->get<std::int64_t>();
}

void TokenizerFields::done() const {
  for (const auto& [key, value] : value_.items()) {
    require(asked_.contains(key), "{}: found {}, expected no such field (it may change the result)",
            place(shown_text(key)), shown(value));
  }
}

void TokenizerFields::wrong(const std::string& key, const std::string& expected) const {
  const auto found = [&]() -> std::string {
    if (key.empty()) return shown(value_);
    const auto field = value_.find(key);
    return field == value_.end() ? "nothing" : shown(*field);
  };
  fail("{}: found {}, expected {}", place(key), found(), expected);
}

std::string TokenizerFields::where(const std::string& key) const {
  if (key.empty()) return path_.empty() ? "the root" : path_;
  return path_.empty() ? key : path_ + "." + key;
}

std::string TokenizerFields::place(const std::string& key) const {
  return source_ + ": " + where(key);
}

}  // namespace mla
