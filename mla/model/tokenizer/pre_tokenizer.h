#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "mla/model/tokenizer/normalizer.h"

namespace mla {

/// How tokenizer.json cuts a text into the words that the model may merge within.
class PreTokenizer {
 public:
  /// A text on its way through the steps, and its cuts. Reused from text to text.
  struct Words {
    std::string_view text;     ///< what the pieces are ranges of: the input, or `rewritten`
    std::vector<Span> pieces;  ///< none of them empty
    std::size_t given = 0;     ///< bytes of the input, which the steps may not lengthen without bound
    bool at_start = false;     ///< whether the first piece begins where the whole input begins
    std::string rewritten;
    std::vector<Span> scratch_pieces, matches;
    std::string scratch_text;
  };

  /// Reads the field `pre_tokenizer` (nullptr: none). Throws Error naming file and field for a type we lack,
  /// a regular expression that is broken, or options that contradict each other.
  static PreTokenizer parse(const nlohmann::json* value, const std::string& source);

  /// Cuts `text`, which stands at the start of the whole input or not. `text` must outlive the use of
  /// `words`.
  void split(std::string_view text, bool at_start, Words& words) const;

  /// Whether the model must read each byte of a piece as byte_level_char of it (the last step is ByteLevel).
  bool byte_level() const { return byte_level_; }

 private:
  enum class Behavior { removed, isolated, with_previous, with_next, contiguous };
  struct Split {
    TextPattern pattern;
    Behavior behavior;
    bool invert;
  };
  struct Spell {};  // spell bytes as the characters of byte-level vocabularies
  struct Prefix {   // begin a piece with `text` unless it does already
    std::string text;
    bool only_first;
  };
  struct Swap {  // each space becomes `text`
    std::string text;
  };
  using Step = std::variant<Split, Spell, Prefix, Swap>;

  void read(const nlohmann::json& value, const std::string& source, const std::string& path);
  void read_metaspace(class TokenizerFields& fields);
  void add_split(const std::string& kind, const std::string& pattern, Behavior behavior, bool invert);

  static void apply(const Split& step, Words& words);
  static void apply(const Spell& step, Words& words);
  static void apply(const Prefix& step, Words& words);
  static void apply(const Swap& step, Words& words);
  static void cut(Span piece, Behavior behavior, bool invert, Words& words);
  template <class Rewrite>
  static void rewrite(Words& words, const Rewrite& rewrite);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace mla
