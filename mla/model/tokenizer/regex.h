#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mla {

/// A half-open range of bytes.
struct Span {
  std::size_t begin;
  std::size_t end;
};

/// A compiled regular expression as tokenizer files write it: Oniguruma's Ruby dialect over UTF-8, run by
/// PCRE2. What means the same in both is passed on, what differs is rewritten (`\s`, `\w`, `\v`, `\h`, `\u`,
/// `(?m:`, `{,n}`), and what can't be rewritten is an Error: named and numbered references, `\K`, `&&` and
/// nested sets in `[...]`, `{n,m}+`.
class Regex {
 public:
  /// Compiles `pattern` (valid UTF-8). Throws Error beginning with `place` (file and field) and naming the
  /// pattern if it isn't a regular expression or uses what isn't supported.
  Regex(std::string_view pattern, const std::string& place);

  /// A pattern that matches `text` and nothing else; `text` isn't empty.
  static Regex literal(std::string_view text, const std::string& place);

  /// Appends all matches in `subject` (valid UTF-8), from left to right and without overlap. An empty match
  /// directly behind another match doesn't count. Throws Error if one match takes absurdly many steps.
  void find_all(std::string_view subject, std::vector<Span>& matches) const;

  /// Whether there is a match anywhere.
  bool matches(std::string_view subject) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

/// Oniguruma's dialect rewritten in PCRE2's. `with_new`: spell out the characters that only Oniguruma knows
/// (regex_unicode.h), which costs speed. Throws Error as Regex does.
std::string regex_to_pcre2(std::string_view pattern, bool with_new, const std::string& place);

}  // namespace mla
