#include "mla/core/json.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "mla/core/error.h"

namespace mla {
namespace {

using nlohmann::json;

/// Builds the document value by value, watching for what nlohmann's own builder lets pass.
class StrictBuilder : public nlohmann::json_sax<json> {
 public:
  explicit StrictBuilder(const std::string& source) : source_(source) {}

  json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    const auto [slot, is_new] = open_.back()->get_ref<json::object_t&>().emplace(name, nullptr);
    require(is_new, "{}: key '{}' occurs twice in one object", source_, printable(name));
    slot_ = &slot->second;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    fail("{}: not valid JSON at byte {}: {}", source_, position, printable(error.what()));
  }

 private:
  static constexpr std::size_t max_depth = 64;

  /// One line of ASCII: what the parser quotes from a broken file may be anything.
  static std::string printable(std::string text) {
    for (char& c : text) {
      if (c < ' ' || c > '~') c = '?';
    }
    return text;
  }

  json* place(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    *slot_ = std::move(value);
    return slot_;
  }
  bool add(json value) {
    place(std::move(value));
    return true;
  }
  bool open(json empty) {
    require(open_.size() < max_depth, "{}: nested deeper than {} levels", source_, max_depth);
    open_.push_back(place(std::move(empty)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& source_;
  json root_;
  json* slot_ = nullptr;  // where the value of the last key goes
  std::vector<json*>
      open_;  // containers being filled; only the innermost one grows, so the pointers stay valid
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::string& source) {
  StrictBuilder builder(source);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

}  // namespace mla
