#include "mla/model/config_fields.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

namespace mla {
namespace {

using nlohmann::json;

bool is_finite_number(const json& value) {
  return value.is_number() && std::isfinite(value.get<double>());
}

}  // namespace

std::string json_text(const json& value) {
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

bool is_integer(const json& value, std::int64_t low, std::int64_t high) {
  if (!value.is_number_integer()) return false;
  // What is not negative is stored as unsigned: 2^64 - 1 must not turn into -1.
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
    return false;
  const auto number = value.get<std::int64_t>();
  return low <= number && number <= high;
}

JsonFields::JsonFields(const json& object, std::string source, std::string prefix)
    : object_(object), source_(std::move(source)), prefix_(std::move(prefix)) {
  if (object.is_object()) return;
  const std::string where = prefix_.empty() ? "" : prefix_.substr(0, prefix_.size() - 1) + ": ";
  fail("{}: {}found {}, expected an object", source_, where, json_text(object));
}

const json* JsonFields::find(const std::string& name) {
  asked_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool JsonFields::is_written(const std::string& name) const {
  return object_.contains(name);
}

const json& JsonFields::need(const std::string& name, std::string_view expected) {
  const json* value = find(name);
  if (!value) refuse(name, expected);
  return *value;
}

std::int64_t JsonFields::integer(const std::string& name, std::int64_t low, std::int64_t high) {
  const std::string expected = fmt::format("an integer from {} to {}", low, high);
  const json& value = need(name, expected);
  if (!is_integer(value, low, high)) refuse(name, expected);
  return value.get<std::int64_t>();
}

std::uint64_t JsonFields::whole_number(const std::string& name) {
  constexpr std::string_view expected = "a whole number";
  const nlohmann::json& value = need(name, expected);
  if (!value.is_number_unsigned()) refuse(name, expected);
  return value.get<std::uint64_t>();
}

double JsonFields::number_above(const std::string& name, double low) {
  const std::string expected = fmt::format("a number above {}", low);
  const json& value = need(name, expected);
  if (!is_finite_number(value) || value.get<double>() <= low) refuse(name, expected);
  return value.get<double>();
}

double JsonFields::number_from(const std::string& name, double low, double otherwise) {
  const json* value = find(name);
  if (!value) return otherwise;
  if (!is_finite_number(*value) || value->get<double>() < low)
    refuse(name, fmt::format("a number from {}", low));
  return value->get<double>();
}

bool JsonFields::flag(const std::string& name, bool otherwise) {
  const json* value = find(name);
  if (!value) return otherwise;
  if (!value->is_boolean()) refuse(name, "true or false");
  return value->get<bool>();
}

std::vector<double> JsonFields::positive_numbers(const std::string& name) {
  const char* expected = "a list of numbers above 0";
  const json& value = need(name, expected);
  if (!value.is_array()) refuse(name, expected);
  std::vector<double> numbers;
  for (const json& item : value) {
    if (!is_finite_number(item) || item.get<double>() <= 0.0) refuse(name, expected);
    numbers.push_back(item.get<double>());
  }
  return numbers;
}

std::string JsonFields::word(const std::string& name, std::initializer_list<const char*> known) {
  const std::string expected = fmt::format("{}", fmt::join(known, " or "));
  const json& value = need(name, expected);
  if (!value.is_string() || std::ranges::find(known, value.get<std::string>()) == known.end())
    refuse(name, expected);
  return value.get<std::string>();
}

void JsonFields::must_be(const std::string& name, const json& only) {
  const json* value = find(name);
  if (value && *value != only) refuse(name, json_text(only));
}

void JsonFields::refuse(const std::string& name, std::string_view expected) const {
  const auto found = object_.find(name);
  fail("{}: {}{}: found {}, expected {}", source_, prefix_, name,
       found == object_.end() ? "nothing" : json_text(*found), expected);
}

void JsonFields::skip(std::initializer_list<const char*> names) {
  for (const char* name : names) asked_.insert(name);
}

std::vector<std::string> JsonFields::unread() const {
  std::vector<std::string> names;
  for (const auto& item : object_.items()) {
    if (!asked_.contains(item.key())) names.push_back(item.key());
  }
  return names;
}

void JsonFields::refuse_unread() const {
  for (const std::string& name : unread()) {
    const std::string quoted = json_text(name);
    fail("{}: {}{}: found {}, expected no such field here", source_, prefix_,
         quoted.substr(1, quoted.size() - 2), json_text(object_.at(name)));
  }
}

}  // namespace mla
