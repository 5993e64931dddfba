#pragma once
#include <cstddef>
#include <string>
#include <string_view>

namespace mla {

/// What stands at one place of a byte string that is meant to be UTF-8.
struct Utf8Step {
  enum Kind { valid, invalid, incomplete };
  Kind kind;
  std::size_t length;  ///< bytes of the character, or of the longest beginning of one, at least 1
};

/// The character, or the broken beginning of one, at text[at]; `at` is inside the text. Surrogates, overlong
/// forms and code points above U+10FFFF are invalid. `incomplete` means that the text ends before the
/// character does.
Utf8Step utf8_step(std::string_view text, std::size_t at);

/// Where the first byte that isn't part of a valid character stands, or npos.
std::size_t utf8_invalid_at(std::string_view text);

/// The code point at text[at], and moves `at` behind it. The text must be valid.
char32_t utf8_next(std::string_view text, std::size_t& at);

/// Appends a code point (not a surrogate, at most U+10FFFF).
void utf8_append(std::string& text, char32_t code);

/// U+FFFD, which stands for bytes that aren't UTF-8.
inline constexpr std::string_view utf8_replacement = "\xEF\xBF\xBD";

/// Makes valid UTF-8 of bytes that come in any pieces: each longest broken beginning of a character becomes
/// one U+FFFD, and a character cut by the end of a piece waits for the next one. The total doesn't depend on
/// the cuts.
class Utf8Repair {
 public:
  /// Appends to `out` all characters that are complete.
  void push(std::string_view bytes, std::string& out);

  /// Appends U+FFFD if a character was still waiting for its end.
  void finish(std::string& out);

 private:
  std::string pending_;
};

}  // namespace mla
