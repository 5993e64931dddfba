#pragma once
#include <span>
#include <string_view>

namespace mla {

/// A range of characters that came with Unicode 15, 15.1 or 16, and their general category. PCRE2 10.42 knows
/// Unicode 14, the `tokenizers` library knows 16, so a regular expression must name these characters itself.
struct NewCharacters {
  char32_t first;
  char32_t last;
  std::string_view category;
};

/// All of them, in order.
std::span<const NewCharacters> new_characters();

/// Whether `text` (valid UTF-8) has one of them.
bool has_new_character(std::string_view text);

}  // namespace mla
