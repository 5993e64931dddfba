#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

namespace mla {

/// One object of a tokenizer file, read field by field. It knows where it stands, so that every Error names
/// the file, the field, what was found and what was expected; `done` reports the fields that nobody asked
/// for, because a field that is silently ignored would change the result.
class TokenizerFields {
 public:
  /// Throws Error unless `value` is an object. `value` must outlive this.
  TokenizerFields(const nlohmann::json& value, const std::string& source, const std::string& path);

  /// The field, or nullptr if it's missing or null.
  const nlohmann::json* find(const std::string& key);

  /// The field, of the kind named; Error if it's missing or of another kind.
  const nlohmann::json& array(const std::string& key);
  const nlohmann::json& object(const std::string& key);
  std::string text(const std::string& key);
  bool flag(const std::string& key);
  std::int64_t number(const std::string& key, std::int64_t low, std::int64_t high);

  /// The field, or `missing` if it's missing or null.
  bool flag(const std::string& key, bool missing);

  /// Error if a field is there that no call above has asked for.
  void done() const;

  /// Throws Error: field `key` (none: the object itself) holds what was found instead of `expected`.
  [[noreturn]] void wrong(const std::string& key, const std::string& expected) const;

  const std::string& source() const { return source_; }
  std::string where(const std::string& key) const;  ///< the field's path from the root of the file
  std::string place(const std::string& key) const;  ///< the file and the field's path, as Errors begin

 private:
  const nlohmann::json& value_;
  std::string source_;
  std::string path_;
  std::set<std::string> asked_;
};

/// A value of a file as an Error shows it: short and on one line.
std::string shown(const nlohmann::json& value);

/// A text from outside as an Error shows it: in quotes, escaped, short and on one line.
std::string shown_text(std::string_view text);

}  // namespace mla
