#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace mla {

/// Parses JSON that comes from outside. Stricter than the library underneath: a key that occurs twice in one
/// object and nesting deeper than 64 are errors too. Throws Error beginning with `source` (a file's name).
nlohmann::json parse_json(std::string_view text, const std::string& source);

}  // namespace mla
