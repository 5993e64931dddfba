#pragma once
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "mla/model/tokenizer/normalizer.h"
#include "mla/model/tokenizer/vocabulary.h"

namespace mla {

/// One entry of `added_tokens`.
struct AddedToken {
  std::string content;
  std::string text;  ///< what it decodes to and what is looked for: the content, normalized if `normalized`
  std::int32_t id = 0;
  bool single_word = false;  ///< only where no letter, digit or underscore touches it
  bool lstrip = false;       ///< takes the whitespace before it along
  bool rstrip = false;       ///< takes the whitespace behind it along
  bool normalized = false;   ///< its normalized text is looked for in the normalized input
  bool special = false;      ///< left out of decoded text
};

/// Finds texts in a text: leftmost first, of those that begin at one place the longest.
class TextFinder {
 public:
  /// Adds a text, not empty. Of equal texts the last one counts.
  void add(std::string_view text, std::size_t index);

  /// The index of the longest text that begins at text[at], or npos; sets `end` to where it ends.
  std::size_t find(std::string_view text, std::size_t at, std::size_t& end) const;

  bool begins(char byte) const { return first_[static_cast<unsigned char>(byte)]; }
  bool empty() const { return ends_.size() == 1; }

 private:
  std::unordered_map<std::uint64_t, std::uint32_t> children_;  // node and byte to node
  std::vector<std::size_t> ends_ = {std::string_view::npos};   // by node
  std::array<bool, 256> first_{};
};

/// The tokens that are recognised in the text itself, before it is cut into words.
class AddedTokens {
 public:
  /// A range of a text: an added token, or text between.
  struct Part {
    std::size_t begin, end;
    std::int32_t id;  ///< -1: text
  };

  /// Reads the field `added_tokens` (nullptr: none). Throws Error naming file and field if an entry is
  /// broken, doubled, or contradicts the model's vocabulary.
  static AddedTokens parse(const nlohmann::json* value, const std::string& source,
                           const Normalizer& normalizer, const Vocabulary& vocabulary);

  /// Cuts a text around the tokens that are looked for before (`normalized` false) or after normalization.
  void split(std::string_view text, bool normalized, std::vector<Part>& parts) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedToken* find(std::int32_t id) const;
  const AddedToken* find(std::string_view content) const;

 private:
  bool touches_word(std::string_view text, std::size_t begin, std::size_t end) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::int32_t, std::size_t> by_id_;
  std::unordered_map<std::string, std::size_t> by_content_;
  TextFinder raw_, normalized_;
};

}  // namespace mla
