#pragma once
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mla/model/tokenizer/vocabulary.h"

namespace mla {

/// The character that stands for a byte in byte-level vocabularies: printable Latin-1 stands for itself, the
/// others are numbered from U+0100 on.
char32_t byte_level_char(unsigned char byte);

/// The byte that a character stands for, or -1.
int byte_level_byte(char32_t code);

/// The ids of the words met lately, so that a common word is merged once. Holds a bounded number of words and
/// forgets all of them when full.
class WordCache {
 public:
  WordCache();

  /// Appends the ids of `word` to `ids`; false if it isn't known.
  bool find(std::string_view word, std::uint64_t hash, std::vector<std::int32_t>& ids) const;

  void insert(std::string_view word, std::uint64_t hash, const std::int32_t* ids, std::size_t count);

  static std::uint64_t hash(std::string_view word);

 private:
  struct Slot {
    std::uint64_t hash;
    std::uint32_t text_at, text_size;  // text_size 0: the slot is free
    std::uint32_t ids_at, ids_size;
  };
  std::size_t place(std::uint64_t hash) const {
    return static_cast<std::size_t>(hash >> 20) & (slots_.size() - 1);
  }
  void grow();

  std::vector<Slot> slots_;
  std::size_t used_ = 0;
  std::string texts_;
  std::vector<std::int32_t> ids_;
};

/// What one call of Tokenizer::encode works with: reused from word to word, never shared between threads.
struct BpeWork {
  WordCache cache;
  std::vector<std::int32_t> symbols;
  std::vector<std::uint32_t> ranks;
  std::vector<std::uint32_t> next, previous;
  std::vector<std::uint64_t> heap;
  std::string text;
};

/// Byte pair encoding with the merges of a tokenizer.json or those that a tiktoken.model implies: the pair
/// with the lowest rank merges first, the leftmost of equals first.
class Bpe {
 public:
  /// Reads the field `model`. Throws Error naming file and field if it isn't a BPE model, asks for what we
  /// lack (dropout, continuing_subword_prefix, end_of_word_suffix, other types) or contradicts itself.
  static Bpe parse(const nlohmann::json& model, const std::string& source);

  /// Reads a tiktoken.model: a line for each token, its bytes in base64 and its rank, which is its id. Any
  /// two tokens that make a token merge, that of the lowest rank first. Throws Error naming file and line for
  /// what is none, and where ranks are missing or a byte has no token.
  static Bpe parse_ranks(std::string_view text, const std::string& source);

  /// Appends the ids of one word. With `byte_level` the word's bytes are read as byte_level_char of each. A
  /// character that no token covers becomes the unknown token, or nothing if the model has none (as in
  /// `tokenizers`).
  void encode(std::string_view word, bool byte_level, BpeWork& work, std::vector<std::int32_t>& ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    std::uint64_t pair;
    std::uint32_t rank;
    std::int32_t id;
  };
  static constexpr std::uint32_t no_rank = UINT32_MAX;
  static constexpr int join_bits = 20;
  static constexpr std::uint64_t no_pair = UINT64_MAX;

  /// Where the search for a pair begins in merges_.
  std::size_t slot_of(std::uint64_t pair) const {
    return static_cast<std::size_t>((pair * 0x9E3779B97F4A7C15u) >> merges_shift_);
  }
  static std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
           static_cast<std::uint32_t>(right);
  }
  void read_vocabulary(const nlohmann::json& vocab, const std::string& place);
  void read_merges(const nlohmann::json& merges, const std::string& place);
  void read_ranks(std::string_view text, const std::string& source);
  /// Of equal pairs the last one counts, as in `tokenizers`.
  void index_merges(const std::vector<Merge>& merges);
  void index_characters();
  const Merge* find(std::int32_t left, std::int32_t right) const;
  std::uint32_t rank(std::int32_t left, std::int32_t right) const;
  /// The code point at word[at] as the model sees it, and moves `at` behind it.
  static char32_t next_character(std::string_view word, bool byte_level, std::size_t& at);
  std::int32_t id_of(char32_t character) const {
    return character < by_character_.size() ? by_character_[character] : -1;
  }
  /// Whether a merge may join a token that ends with `left` and one that begins with `right`: if not, no
  /// merge crosses the place between them, and the two sides can be encoded apart. May say yes for no reason.
  bool may_join(char32_t left, char32_t right) const { return joins_[join_slot(left, right)]; }
  static std::size_t join_slot(char32_t left, char32_t right);
  void encode_word(std::string_view word, bool byte_level, BpeWork& work,
                   std::vector<std::int32_t>& ids) const;
  void symbols_of(std::string_view word, bool byte_level, std::vector<std::int32_t>& symbols) const;
  void add_uncovered(std::string_view character, std::int32_t& unknown,
                     std::vector<std::int32_t>& symbols) const;
  void merge_short(BpeWork& work) const;
  void merge_long(BpeWork& work) const;

  Vocabulary vocabulary_;
  std::vector<Merge> merges_;  // open addressing, a power of two
  int merges_shift_ = 0;
  std::vector<std::int32_t> by_character_;  // id of a one-character token by code point, -1 if there's none
  std::vector<bool> joins_;
  std::array<std::int32_t, 256> fallback_{};  // id of <0xHH>, -1 if there's none
  bool ignore_merges_ = false;
  bool byte_fallback_ = false;
  bool fuse_unknown_ = false;
  std::optional<std::int32_t> unknown_;
};

}  // namespace mla
