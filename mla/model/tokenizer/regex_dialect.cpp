#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "mla/core/error.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/fields.h"
#include "mla/model/tokenizer/regex.h"
#include "mla/model/tokenizer/regex_unicode.h"

namespace mla {
namespace {

/// Reads a pattern from left to right and writes what it means in PCRE2's dialect.
class Translator {
 public:
  Translator(std::string_view pattern, bool with_new, const std::string& place)
      : pattern_(pattern), place_(place), with_new_(with_new), word_members_(word_members()) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        set();
      } else if (c == '(') {
        group();
      } else if (c == '{') {
        interval();
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void unsupported(const std::string& what) const {
    fail("{}: regular expression {}: {} is not supported (at byte {})", place_, shown_text(pattern_), what,
         at_);
  }

  bool ahead(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }

  void copy(std::size_t bytes) {
    out_ += pattern_.substr(at_, bytes);
    at_ += bytes;
  }

  void write(std::string_view text, std::size_t instead_of_bytes) {
    out_ += text;
    at_ += instead_of_bytes;
  }

  /// `\` and what follows it, in a set or outside.
  void escape(bool in_set) {
    if (at_ + 1 == pattern_.size()) unsupported("a backslash at the end");
    const char c = pattern_[at_ + 1];
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) return copy(2);
    switch (c) {
      case 't':
      case 'n':
      case 'r':
      case 'f':
      case 'a':
      case 'e':
        return copy(2);
      case 'd':
        return write(digits(in_set, false), 2);
      case 'v':
        return write("\\x{0b}", 2);
      case 'x':
      case 'u':
        return code_point(c);
      case 'p':
      case 'P':
        return property(in_set);
      case 's':
        return write("\\p{White_Space}", 2);
      case 'S':
        return write("\\P{White_Space}", 2);
      case 'w':
        return write(in_set ? word_members_ : "[" + word_members_ + "]", 2);
      case 'h':
        return write(in_set ? "0-9a-fA-F" : "[0-9a-fA-F]", 2);
      default:
        break;
    }
    if (in_set) {
      if (c == 'D') return copy(2);
      if (c == 'b') return write("\\x{08}", 2);
    } else {
      if (c == 'D') return write(digits(false, true), 2);
      if (c == 'A' || c == 'z') return copy(2);
      if (c == 'W') return write("[^" + word_members_ + "]", 2);
      if (c == 'H') return write("[^0-9a-fA-F]", 2);
      const std::string word = "[" + word_members_ + "]";
      if (c == 'b')
        return write("(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))", 2);
      if (c == 'B')
        return write("(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))", 2);
    }
    unsupported(std::string("the escape \\") + c);
  }

  std::string digits(bool in_set, bool negated) const {
    const std::string members = "\\p{Nd}" + new_of("Nd");
    return in_set ? members : (negated ? "[^" : "[") + members + "]";
  }

  /// `\xHH`, `\x{H...}` or `\uHHHH`.
  void code_point(char kind) {
    std::size_t begin = at_ + 2;
    std::size_t end = begin;
    const bool braces = kind == 'x' && begin < pattern_.size() && pattern_[begin] == '{';
    if (braces) end = ++begin;
    const std::size_t most = braces ? 6 : kind == 'u' ? 4 : 2;
    while (end < pattern_.size() && end < begin + most &&
           std::isxdigit(static_cast<unsigned char>(pattern_[end])) != 0) {
      ++end;
    }
    const std::string digits(pattern_.substr(begin, end - begin));
    const bool whole =
        braces ? end < pattern_.size() && pattern_[end] == '}' : kind == 'x' || digits.size() == 4;
    if (digits.empty() || !whole) unsupported("a broken code point");
    if (kind == 'x' && !braces && std::strtoul(digits.c_str(), nullptr, 16) > 0x7F) {
      unsupported("\\x with a byte above 7F");
    }
    write("\\x{" + digits + "}", end + (braces ? 1 : 0) - at_);
  }

  /// `\p{Name}`, `\p{^Name}` or `\P{Name}`. In a set a negated one lets the new characters pass.
  void property(bool in_set) {
    const std::size_t close = pattern_.find('}', at_);
    if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' || close == std::string_view::npos) {
      unsupported("a property without braces");
    }
    std::string_view name = pattern_.substr(at_ + 3, close - at_ - 3);
    bool negated = pattern_[at_ + 1] == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const bool script = name.size() > 2 && name != "Any" && name != "Alphabetic" && name != "White_Space" &&
                        name != "Uppercase" && name != "Lowercase";
    const std::string positive = std::string("\\p{") + (script ? "sc:" : "") + std::string(name) + "}";
    const std::string added = new_of(name);
    const std::string negative = "\\P" + positive.substr(2);
    if (added.empty() || (in_set && negated)) {
      write(negated ? negative : positive, close + 1 - at_);
    } else {
      write(in_set ? positive + added : (negated ? "[^" : "[") + positive + added + "]", close + 1 - at_);
    }
  }

  /// The new characters of a category (L or Lu) or script, written as members of a set.
  std::string new_of(std::string_view name) const {
    std::string members;
    if (!with_new_) return members;
    if (name == "Han") return "\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}";
    if (name == "Hiragana") return "\\x{1B132}";
    if (name == "Katakana") return "\\x{1B155}";
    for (const NewCharacters& range : new_characters()) {
      const bool inside = name == "Alphabetic" ? range.category[0] == 'L' || range.category == "Nl"
                                               : name.size() <= 2 && range.category.starts_with(name);
      if (inside) members += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", +range.first, +range.last);
    }
    return members;
  }

  /// What Oniguruma's `\w` holds, written as members of a set.
  std::string word_members() const {
    return "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}" + new_of("L") +
           new_of("M") + new_of("Nd") + new_of("Pc");
  }

  /// `[...]`.
  void set() {
    copy(1);
    if (ahead("^")) copy(1);
    bool first = true;
    for (;; first = false) {
      if (at_ == pattern_.size()) unsupported("a set without an end");
      if (ahead("]") && !first) return copy(1);
      if (ahead("[")) unsupported("a set within a set");
      if (ahead("&&")) unsupported("an intersection of sets");
      if (ahead("\\")) {
        escape(true);
      } else {
        copy(1);
      }
    }
  }

  /// `(` and what decides the kind of group.
  void group() {
    if (ahead("(*")) unsupported("(*");
    if (!ahead("(?")) return copy(1);
    for (const std::string_view same : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (ahead(same)) return copy(same.size());
    }
    const std::size_t begin = at_;
    std::string flags = "(?";
    for (at_ += 2;
         at_ < pattern_.size() && std::string_view("im-").find(pattern_[at_]) != std::string_view::npos;
         ++at_) {
      flags += pattern_[at_] == 'm' ? 's' : pattern_[at_];  // Ruby's m lets a dot match a line feed
    }
    const bool at_start = begin == 0 || pattern_[begin - 1] == '(' || pattern_[begin - 1] == ':';
    if (!ahead(":") && !(ahead(")") && at_start)) unsupported("this kind of group");
    out_ += flags;
    copy(1);
  }

  /// `{n,m}`, or a brace that means itself.
  void interval() {
    std::size_t end = at_ + 1;
    const auto digits = [&] {
      const std::size_t begin = end;
      while (end < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[end])) != 0) ++end;
      return end - begin;
    };
    const bool low = digits() > 0;
    const bool comma = end < pattern_.size() && pattern_[end] == ',';
    if (comma) ++end;
    const bool high = comma && digits() > 0;
    if (end == pattern_.size() || pattern_[end] != '}' || (!low && !high)) return write("\\{", 1);
    const std::size_t next = end + 1;
    if (next < pattern_.size() && pattern_[next] == '+') unsupported("{n,m}+");
    if (next < pattern_.size() && pattern_[next] == '?' && !comma) unsupported("{n}?");
    if (!low) write("{0", 1);
    copy(next - at_);
  }

  std::string_view pattern_;
  const std::string& place_;
  bool with_new_;
  std::string word_members_;
  std::size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string regex_to_pcre2(std::string_view pattern, bool with_new, const std::string& place) {
  return Translator(pattern, with_new, place).run();
}

bool has_new_character(std::string_view text) {
  const auto table = new_characters();
  for (std::size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0xE0) {
      ++at;
      continue;
    }
    const char32_t code = utf8_next(text, at);
    if (code >= 0x3200 && code < 0xA7CB) continue;  // most of what is written in China, Japan and Korea
    const auto above =
        std::upper_bound(table.begin(), table.end(), code,
                         [](char32_t value, const NewCharacters& range) { return value < range.first; });
    if (above != table.begin() && code <= std::prev(above)->last) return true;
  }
  return false;
}

}  // namespace mla
