#include "mla/model/tokenizer/pre_tokenizer.h"

#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/bpe.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {

using nlohmann::json;

namespace {

/// The words of GPT-2: contractions, letters, numbers, the rest, spaces.
constexpr const char* gpt2_words =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/// Digits and Whitespace go by Rust's tables (Unicode 17, another \w), not by Oniguruma's.
constexpr const char* any_number = "[\\p{N}\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}]";
constexpr const char* words_and_marks =
    "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200C\\u200D]+|[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
    "\\u200C\\u200D\\s]+";

}  // namespace

PreTokenizer PreTokenizer::parse(const json* value, const std::string& source) {
  PreTokenizer result;
  if (value != nullptr) result.read(*value, source, "pre_tokenizer");
  result.byte_level_ = !result.steps_.empty() && std::holds_alternative<Spell>(result.steps_.back());
  if (result.byte_level_) result.steps_.pop_back();  // the model spells while it reads
  return result;
}

void PreTokenizer::add_split(const std::string& kind, const std::string& pattern, Behavior behavior,
                             bool invert) {
  const json value = {{kind, pattern}};
  steps_.push_back(Split{TextPattern(&value, "built in", "pattern"), behavior, invert});
}

void PreTokenizer::read(const json& value, const std::string& source, const std::string& path) {
  TokenizerFields fields(value, source, path);
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    const json& parts = fields.array("pretokenizers");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      read(parts[i], source, fmt::format("{}.pretokenizers[{}]", path, i));
    }
  } else if (type == "Split") {
    TextPattern pattern(fields.find("pattern"), source, fields.where("pattern"));
    const std::vector<std::string> names = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                                            "Contiguous"};
    const auto name = std::find(names.begin(), names.end(), fields.text("behavior"));
    if (name == names.end())
      fields.wrong("behavior", "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
    steps_.push_back(
        Split{std::move(pattern), static_cast<Behavior>(name - names.begin()), fields.flag("invert", false)});
  } else if (type == "ByteLevel") {
    fields.flag("trim_offsets", true);  // only offsets depend on it
    if (fields.flag("add_prefix_space")) steps_.push_back(Prefix{" ", false});
    if (fields.flag("use_regex", true)) add_split("Regex", gpt2_words, Behavior::isolated, false);
    steps_.push_back(Spell{});
  } else if (type == "Digits") {
    const bool each = fields.flag("individual_digits", false);
    add_split("Regex", any_number, each ? Behavior::isolated : Behavior::contiguous, false);
  } else if (type == "Whitespace") {
    add_split("Regex", words_and_marks, Behavior::removed, true);
  } else if (type == "WhitespaceSplit") {
    add_split("Regex", "\\s", Behavior::removed, false);
  } else if (type == "Metaspace") {
    read_metaspace(fields);
  } else {
    fields.wrong("type", "Sequence, Split, ByteLevel, Digits, Metaspace, Whitespace or WhitespaceSplit");
  }
  fields.done();
}

void PreTokenizer::read_metaspace(TokenizerFields& fields) {
  const std::string replacement = fields.text("replacement");
  if (replacement.empty() || utf8_step(replacement, 0).length != replacement.size()) {
    fields.wrong("replacement", "one character");
  }
  if (fields.find("str_rep") != nullptr && fields.text("str_rep") != replacement) {
    fields.wrong("str_rep", "the same as replacement");
  }
  const bool prefix = fields.flag("add_prefix_space", true);
  const std::string scheme =
      fields.find("prepend_scheme") == nullptr ? "always" : fields.text("prepend_scheme");
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    fields.wrong("prepend_scheme", "always, first or never");
  }
  if (!prefix && fields.find("prepend_scheme") != nullptr && scheme != "never") {
    fields.wrong("prepend_scheme", "never, because add_prefix_space is false");
  }
  steps_.push_back(Swap{replacement});
  if (scheme != "never" && prefix) steps_.push_back(Prefix{replacement, scheme == "first"});
  if (fields.flag("split", true)) add_split("String", replacement, Behavior::with_next, false);
}

void PreTokenizer::split(std::string_view text, bool at_start, Words& words) const {
  words.text = text;
  words.given = text.size();
  words.at_start = at_start;
  words.pieces.clear();
  if (!text.empty()) words.pieces.push_back({0, text.size()});
  for (const Step& step : steps_) {
    std::visit([&](const auto& chosen) { apply(chosen, words); }, step);
  }
}

void PreTokenizer::apply(const Split& step, Words& words) {
  const std::vector<Span> pieces = std::move(words.pieces);
  words.pieces = std::move(words.scratch_pieces);
  words.pieces.clear();
  const std::size_t start = pieces.empty() ? 0 : pieces.front().begin;
  for (const Span& piece : pieces) {
    step.pattern.find_all(words.text.substr(piece.begin, piece.end - piece.begin), words.matches);
    cut(piece, step.behavior, step.invert, words);
  }
  words.at_start = words.at_start && !words.pieces.empty() && words.pieces.front().begin == start;
  words.scratch_pieces = pieces;
}

/// Appends the parts of `piece`: its matches (of words.matches) and what lies between them, joined as
/// `behavior` says.
void PreTokenizer::cut(Span piece, Behavior behavior, bool invert, Words& words) {
  struct Part {
    std::size_t begin, end;
    bool match;
  };
  const std::size_t size = piece.end - piece.begin;
  const auto add = [&](std::size_t begin, std::size_t end) {
    if (begin < end) words.pieces.push_back({piece.begin + begin, piece.begin + end});
  };
  if (behavior == Behavior::isolated) {
    std::size_t at = 0;
    for (const Span& match : words.matches) {
      add(at, match.begin);
      add(match.begin, match.end);
      at = match.end;
    }
    return add(at, size);
  }
  std::vector<Part> parts;
  std::size_t at = 0;
  for (const Span& match : words.matches) {
    if (at != match.begin) parts.push_back({at, match.begin, invert});
    parts.push_back({match.begin, match.end, !invert});
    at = match.end;
  }
  if (at != size) parts.push_back({at, size, invert});
  std::vector<Part> joined;
  bool last_match = false;
  if (behavior == Behavior::with_next) std::reverse(parts.begin(), parts.end());
  for (const Part& part : parts) {
    if (behavior == Behavior::removed) {
      if (!part.match) joined.push_back(part);
      continue;
    }
    const bool join = behavior == Behavior::contiguous ? part.match == last_match : part.match && !last_match;
    if (join && !joined.empty()) {
      joined.back().begin = std::min(joined.back().begin, part.begin);
      joined.back().end = std::max(joined.back().end, part.end);
    } else {
      joined.push_back(part);
    }
    last_match = part.match;
  }
  if (behavior == Behavior::with_next) std::reverse(joined.begin(), joined.end());
  for (const Part& part : joined) add(part.begin, part.end);
}

/// Writes every piece anew: rewrite(piece's text, whether it is the first of the whole input, where to
/// append).
template <class Rewrite>
void PreTokenizer::rewrite(Words& words, const Rewrite& rewrite) {
  std::string text = std::move(words.scratch_text);
  text.clear();
  bool first = words.at_start;
  for (Span& piece : words.pieces) {
    const std::size_t begin = text.size();
    rewrite(words.text.substr(piece.begin, piece.end - piece.begin), first, text);
    piece = {begin, text.size()};
    first = false;
  }
  check_growth(words.given, text.size());
  words.scratch_text = std::move(words.rewritten);
  words.rewritten = std::move(text);
  words.text = words.rewritten;
}

void PreTokenizer::apply(const Spell&, Words& words) {
  rewrite(words, [](std::string_view piece, bool, std::string& out) {
    for (const char byte : piece) utf8_append(out, byte_level_char(static_cast<unsigned char>(byte)));
  });
}

void PreTokenizer::apply(const Prefix& step, Words& words) {
  rewrite(words, [&](std::string_view piece, bool first, std::string& out) {
    if ((first || !step.only_first) && !piece.starts_with(step.text)) out += step.text;
    out += piece;
  });
}

void PreTokenizer::apply(const Swap& step, Words& words) {
  rewrite(words, [&](std::string_view piece, bool, std::string& out) {
    for (const char byte : piece) {
      if (byte == ' ') {
        out += step.text;
      } else {
        out += byte;
      }
    }
  });
}

}  // namespace mla
