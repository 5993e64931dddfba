#include "mla/train/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "mla/core/error.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/added_tokens.h"
#include "mla/model/tokenizer/bpe.h"
#include "mla/model/tokenizer/fields.h"
#include "mla/model/tokenizer/pre_tokenizer.h"

namespace mla {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

/// A tokenizer.json without its tokens, with the words of DeepSeek-V3: up to three digits, a run of Chinese
/// or Japanese characters, letters with what stands before them, punctuation, spaces.
constexpr const char* empty_tokenizer =
    R"json({
  "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex": "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+"},
      "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex":
"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+)json"
    R"json(|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
      }, "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
  "post_processor": null,
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
    "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
    "vocab": {}, "merges": []}
})json";

constexpr std::size_t chunk_size = 1 << 20;  // bytes that are cut into words at once

/// Where a chunk that begins at `begin` may end: behind a line end that an English letter follows. No word
/// crosses that place and none depends on what lies beyond it, so the words are those of the whole text.
std::size_t chunk_end(std::string_view text, std::size_t begin) {
  if (text.size() - begin <= chunk_size) return text.size();
  for (std::size_t at = begin + chunk_size; at < text.size(); ++at) {
    const auto letter = static_cast<unsigned>(static_cast<unsigned char>(text[at]) | 0x20);
    if (text[at - 1] == '\n' && letter >= 'a' && letter <= 'z') return at;
  }
  return text.size();
}

/// The distinct words of a text, in the order in which they come, and how often each comes.
class WordCounts {
 public:
  void add(std::string_view text, const PreTokenizer& pre_tokenizer) {
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = chunk_end(text, begin);
      pre_tokenizer.split(text.substr(begin, end - begin), false, pieces_);
      for (const Span& piece : pieces_.pieces) {
        const std::string_view word = text.substr(begin + piece.begin, piece.end - piece.begin);
        const auto [place, is_new] = index_.emplace(word, words.size());
        if (is_new) words.push_back({word, 0});
        ++words[place->second].second;
      }
      begin = end;
    }
  }

  std::vector<std::pair<std::string_view, std::int64_t>> words;

 private:
  std::unordered_map<std::string_view, std::size_t> index_;
  PreTokenizer::Words pieces_;
};

/// The vocabulary as it grows, and the words as it encodes them. All words lie in one array of symbols, each
/// a list in it; a pair of neighbours knows how often it occurs and where, so that a merge touches the places
/// where it happens and nothing else.
///
/// What makes this simple: no text becomes a token by two different merges. As long as no token reaches
/// beyond a stretch of a word, the stretch is cut as if it stood alone, so its last two tokens are the same
/// everywhere. Hence a pair is formed only by the merge that makes the younger of its tokens; afterwards it
/// can only become rarer, and once merged it never comes back.
class BpeLearner {
 public:
  BpeLearner(const std::vector<std::string>& special_tokens, const WordCounts& counts);

  /// Merges until there are `vocab_size` tokens or no pair occurs `min_count` times.
  void learn(std::int64_t vocab_size, std::int64_t min_count);

  /// Fills the fields vocab and merges.
  void write(ordered_json& model) const;

  std::int64_t vocab_size() const { return static_cast<std::int64_t>(texts_.size()); }
  std::int64_t merges() const { return static_cast<std::int64_t>(merges_.size()); }

 private:
  using Key = std::uint64_t;  // left id, right id
  static constexpr std::uint32_t none = UINT32_MAX;

  struct Symbol {
    std::int32_t token;  // -1: it went into the symbol before it
    std::uint32_t previous, next;
    std::uint32_t word;
  };
  struct Pair {
    std::int64_t count = 0;
    std::vector<std::uint32_t> places;  // of left symbols, ascending; some may be of the past
  };
  struct Candidate {
    std::int64_t count;  // when it was queued
    Key key;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : key > other.key;
    }
  };

  const std::string& left_text(Key key) const { return texts_[static_cast<std::size_t>(key >> 32)]; }
  const std::string& right_text(Key key) const { return texts_[static_cast<std::size_t>(key & UINT32_MAX)]; }
  std::vector<std::int32_t> add_bytes();
  void add_word(std::string_view word, std::int64_t count, const std::vector<std::int32_t>& byte_ids);
  Key key_at(std::uint32_t place) const;
  void count_pair(std::uint32_t place);
  void discount_pair(std::uint32_t place);
  void queue_formed();
  void merge(Key key, std::int32_t token);
  void merge_at(std::uint32_t place, std::int32_t token);

  std::vector<std::string> texts_;  // by id
  std::unordered_set<std::string> special_;
  std::vector<Key> merges_;
  std::vector<Symbol> symbols_;
  std::vector<std::int64_t> counts_;  // by word
  std::unordered_map<Key, Pair> pairs_;
  std::vector<Key> formed_;  // pairs that are not queued yet
  std::priority_queue<Candidate> queue_;
};

BpeLearner::BpeLearner(const std::vector<std::string>& special_tokens, const WordCounts& counts)
    : texts_(special_tokens), special_(special_tokens.begin(), special_tokens.end()) {
  const std::vector<std::int32_t> byte_ids = add_bytes();
  std::size_t total = 0;
  for (const auto& [word, count] : counts.words) total += word.size();
  require(total < none, "the text to train on has distinct words of {} bytes, expected fewer than {}", total,
          none);
  symbols_.reserve(total);
  for (const auto& [word, count] : counts.words) add_word(word, count, byte_ids);
  queue_formed();
}

/// Adds the tokens of the bytes, in the order of their characters, and returns their ids by byte.
std::vector<std::int32_t> BpeLearner::add_bytes() {
  std::vector<std::pair<char32_t, std::size_t>> characters;
  for (std::size_t byte = 0; byte < 256; ++byte)
    characters.push_back({byte_level_char(static_cast<unsigned char>(byte)), byte});
  std::sort(characters.begin(), characters.end());
  std::vector<std::int32_t> ids(256);
  for (const auto& [character, byte] : characters) {
    ids[byte] = static_cast<std::int32_t>(texts_.size());
    utf8_append(texts_.emplace_back(), character);
  }
  return ids;
}

void BpeLearner::add_word(std::string_view word, std::int64_t count,
                          const std::vector<std::int32_t>& byte_ids) {
  const auto begin = static_cast<std::uint32_t>(symbols_.size());
  const auto end = begin + static_cast<std::uint32_t>(word.size());
  const auto index = static_cast<std::uint32_t>(counts_.size());
  counts_.push_back(count);
  for (std::uint32_t place = begin; place < end; ++place) {
    const std::int32_t token = byte_ids[static_cast<unsigned char>(word[place - begin])];
    symbols_.push_back(
        {token, place == begin ? none : place - 1, place + 1 == end ? none : place + 1, index});
    if (place > begin) count_pair(place - 1);
  }
}

/// The symbol at `place` and the one behind it, which must exist.
BpeLearner::Key BpeLearner::key_at(std::uint32_t place) const {
  const Symbol& left = symbols_[place];
  return static_cast<Key>(left.token) << 32 | static_cast<Key>(symbols_[left.next].token);
}

void BpeLearner::count_pair(std::uint32_t place) {
  const Key key = key_at(place);
  Pair& pair = pairs_[key];
  if (pair.places.empty()) formed_.push_back(key);
  pair.places.push_back(place);
  pair.count += counts_[symbols_[place].word];
}

void BpeLearner::discount_pair(std::uint32_t place) {
  pairs_.find(key_at(place))->second.count -= counts_[symbols_[place].word];
}

void BpeLearner::queue_formed() {
  for (const Key key : formed_) queue_.push({pairs_.find(key)->second.count, key});
  formed_.clear();
}

void BpeLearner::learn(std::int64_t vocab_size, std::int64_t min_count) {
  while (this->vocab_size() < vocab_size && !queue_.empty()) {
    const Candidate best = queue_.top();
    if (best.count < min_count) return;
    queue_.pop();
    const std::int64_t count = pairs_.find(best.key)->second.count;
    if (count < best.count) {  // other merges took places of it
      if (count > 0) queue_.push({count, best.key});
      continue;
    }
    const std::string text = left_text(best.key) + right_text(best.key);
    if (special_.contains(text)) continue;  // it only looks like one: Ġ for a space, say
    texts_.push_back(text);
    merges_.push_back(best.key);
    merge(best.key, static_cast<std::int32_t>(texts_.size() - 1));
    queue_formed();
  }
}

/// Everywhere, the leftmost place of a word first, as the encoder does.
void BpeLearner::merge(Key key, std::int32_t token) {
  const auto pair = pairs_.find(key);
  const std::vector<std::uint32_t> places = std::move(pair->second.places);
  for (const std::uint32_t place : places) {
    const Symbol& left = symbols_[place];
    if (left.token >= 0 && left.next != none && key_at(place) == key) merge_at(place, token);
  }
  pairs_.erase(pair);
}

void BpeLearner::merge_at(std::uint32_t place, std::int32_t token) {
  Symbol& left = symbols_[place];
  Symbol& right = symbols_[left.next];
  if (left.previous != none) discount_pair(left.previous);
  discount_pair(place);
  if (right.next != none) discount_pair(left.next);
  left.token = token;
  left.next = right.next;
  right.token = -1;
  if (left.previous != none) count_pair(left.previous);
  if (left.next == none) return;
  symbols_[left.next].previous = place;
  count_pair(place);
}

void BpeLearner::write(ordered_json& model) const {
  // emplace_back, because an ordered_json looks through all its keys before it takes another.
  auto& vocab = model["vocab"].get_ref<ordered_json::object_t&>();
  for (std::size_t id = 0; id < texts_.size(); ++id) vocab.emplace_back(texts_[id], id);
  for (const Key key : merges_)
    model["merges"].push_back(ordered_json::array({left_text(key), right_text(key)}));
}

void check_special_tokens(const std::vector<std::string>& tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::string& token = tokens[i];
    const auto wrong = [&](const char* expected) {
      fail("special_tokens[{}]: found {}, expected {}", i, shown_text(token), expected);
    };
    if (token.empty()) wrong("a text that isn't empty");
    if (utf8_invalid_at(token) != std::string::npos) wrong("UTF-8");
    std::size_t length = 0;
    if (byte_level_byte(utf8_next(token, length)) >= 0 && length == token.size())
      wrong("more than the character that stands for a byte");
    if (std::find(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(i), token) !=
        tokens.begin() + static_cast<std::ptrdiff_t>(i))
      wrong("each token once");
  }
}

void check_options(const BpeOptions& options) {
  check_special_tokens(options.special_tokens);
  const auto least = static_cast<std::int64_t>(256 + options.special_tokens.size());
  require(options.vocab_size >= least && options.vocab_size <= Vocabulary::max_id + 1,
          "vocab_size: found {}, expected {} (256 bytes and {} special tokens) to {}", options.vocab_size,
          least, options.special_tokens.size(), Vocabulary::max_id + 1);
  require(options.min_count >= 1, "min_count: found {}, expected 1 or more", options.min_count);
}

/// Counts the words between the special tokens: those would not be merged with anything when the text is
/// encoded.
WordCounts count_words(std::string_view text, const ordered_json& document) {
  const std::size_t invalid = utf8_invalid_at(text);
  if (invalid != std::string_view::npos) {
    fail("the text to train on is not UTF-8: byte {} of {} is 0x{:02X}", invalid, text.size(),
         static_cast<unsigned>(static_cast<unsigned char>(text[invalid])));
  }
  const json pre_tokenizer = document["pre_tokenizer"];
  const json added_tokens = document["added_tokens"];
  const PreTokenizer words = PreTokenizer::parse(&pre_tokenizer, "built in");
  const AddedTokens added = AddedTokens::parse(&added_tokens, "built in", Normalizer(), Vocabulary());
  std::vector<AddedTokens::Part> parts;
  added.split(text, false, parts);
  WordCounts counts;
  for (const auto& part : parts) {
    if (part.id < 0) counts.add(text.substr(part.begin, part.end - part.begin), words);
  }
  require(!counts.words.empty(), "the text to train on has no words: {} bytes", text.size());
  return counts;
}

}  // namespace

BpeResult train_bpe(std::string_view text, const BpeOptions& options) {
  check_options(options);
  ordered_json document = ordered_json::parse(empty_tokenizer);
  for (const std::string& token : options.special_tokens) {
    ordered_json& added = document["added_tokens"];
    added.push_back({{"id", added.size()},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  BpeLearner learner(options.special_tokens, count_words(text, document));
  learner.learn(options.vocab_size, options.min_count);
  learner.write(document["model"]);
  return {document.dump(2), learner.vocab_size(), learner.merges()};
}

}  // namespace mla
