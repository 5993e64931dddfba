#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mla/model/tokenizer/regex.h"

namespace mla {

/// Throws Error if a step makes `after` bytes of `before` and that isn't what a tokenizer is for: steps that
/// lengthen a text one after the other would fill any memory.
void check_growth(std::size_t before, std::size_t after);

/// A literal text or a regular expression, as `{"String": ...}` or `{"Regex": ...}` in a tokenizer file.
class TextPattern {
 public:
  /// Throws Error if `value` is neither, is empty or doesn't compile.
  TextPattern(const nlohmann::json* value, const std::string& source, const std::string& path);

  /// All matches in `text`, in `matches` (cleared first).
  void find_all(std::string_view text, std::vector<Span>& matches) const;

  /// `text` with `content` in place of every match. Throws Error if that is absurdly long (check_growth).
  std::string replace(std::string_view text, std::string_view content) const;

  bool is_regex() const { return regex_.has_value(); }

 private:
  std::string literal_;
  std::optional<Regex> regex_;
};

/// What tokenizer.json does to a text before anything else: Prepend and Replace, in order.
class Normalizer {
 public:
  /// Reads the field `normalizer` (nullptr: none). Throws Error naming file and field for a type we lack.
  static Normalizer parse(const nlohmann::json* value, const std::string& source);

  bool empty() const { return steps_.empty(); }
  std::string apply(std::string_view text) const;

 private:
  struct Step {
    std::optional<TextPattern> replaced;  // none: prepend
    std::string content;
  };
  void read(const nlohmann::json& value, const std::string& source, const std::string& path);

  std::vector<Step> steps_;
};

}  // namespace mla
