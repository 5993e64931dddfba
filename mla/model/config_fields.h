#pragma once
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/error.h"

namespace mla {

constexpr std::int64_t max_size = std::int64_t{1} << 24;   ///< of a width, a rank or a count in config.json
constexpr std::int64_t max_count = std::int64_t{1} << 31;  ///< of the vocabulary and the context
constexpr std::int64_t max_layers = std::int64_t{1} << 16;

/// A JSON value for messages: ASCII, one line, cut at 80 characters.
std::string json_text(const nlohmann::json& value);

/// Whether a JSON value is an integer in [low, high]; 64.0 and true are none.
bool is_integer(const nlohmann::json& value, std::int64_t low, std::int64_t high);

/// The fields of one JSON object, each read with its type and range checked, so that an Error says `source:
/// field: found X, expected Y`. null counts as absent, as it does in transformers. Remembers what was asked
/// for.
class JsonFields {
 public:
  /// `prefix` comes before the names of fields in errors ("rope_scaling." or nothing). `object` must outlive
  /// this.
  JsonFields(const nlohmann::json& object, std::string source, std::string prefix = "");

  /// The value, or nullptr if it is absent or null.
  const nlohmann::json* find(const std::string& name);
  bool has(const std::string& name) { return find(name) != nullptr; }
  /// Whether the field is written down, be it as null.
  bool is_written(const std::string& name) const;
  /// The value; Error if it is absent.
  const nlohmann::json& need(const std::string& name, std::string_view expected);

  /// An integer in [low, high]; Error if it is absent or anything else (1.5, 64.0, "64", true).
  std::int64_t integer(const std::string& name, std::int64_t low, std::int64_t high);
  /// A whole number from 0 to 2^64 - 1, as seeds are; Error if it is absent or anything else.
  std::uint64_t whole_number(const std::string& name);
  /// A size: an integer from 1 to max_size.
  std::int64_t size(const std::string& name) { return integer(name, 1, max_size); }
  /// A finite number above `low`; Error if it is absent or anything else.
  double number_above(const std::string& name, double low);
  /// A finite number of at least `low`, or `otherwise` if it is absent.
  double number_from(const std::string& name, double low, double otherwise);
  bool flag(const std::string& name, bool otherwise);
  /// A list of finite numbers above 0; Error if it is absent or anything else.
  std::vector<double> positive_numbers(const std::string& name);
  /// One of `known`; Error if it is absent or anything else.
  std::string word(const std::string& name, std::initializer_list<const char*> known);
  /// Error unless the field is absent or equal to `only`: another value asks for something that this engine
  /// lacks.
  void must_be(const std::string& name, const nlohmann::json& only);

  /// Error about a field: "source: field: found X, expected Y".
  [[noreturn]] void refuse(const std::string& name, std::string_view expected) const;

  /// Counts `names` as read.
  void skip(std::initializer_list<const char*> names);
  /// JsonFields that nobody asked for.
  std::vector<std::string> unread() const;
  /// Error if there is a field that nobody asked for.
  void refuse_unread() const;

  const std::string& source() const { return source_; }

 private:
  const nlohmann::json& object_;
  std::string source_;
  std::string prefix_;
  std::set<std::string> asked_;
};

}  // namespace mla
