#include "mla/model/tokenizer/bpe.h"

#include <algorithm>
#include <functional>

#include "mla/core/error.h"
#include "mla/core/utf8.h"

namespace mla {
namespace {

constexpr std::size_t longest_cached = 256;  // bytes of a word that the cache takes
constexpr std::size_t longest_short = 48;    // symbols that are merged by looking at all of them each time

struct ByteLevel {
  std::array<char32_t, 256> characters{};
  std::array<std::int16_t, 324> bytes{};

  ByteLevel() {
    bytes.fill(-1);
    char32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
      const char32_t code = itself ? static_cast<char32_t>(byte) : next++;
      characters[static_cast<std::size_t>(byte)] = code;
      bytes[code] = static_cast<std::int16_t>(byte);
    }
  }
};

const ByteLevel& byte_level_table() {
  static const ByteLevel table;
  return table;
}

constexpr std::uint64_t spread = 0x9E3779B97F4A7C15u;

}  // namespace

char32_t byte_level_char(unsigned char byte) {
  return byte_level_table().characters[byte];
}

int byte_level_byte(char32_t code) {
  const auto& bytes = byte_level_table().bytes;
  return code < bytes.size() ? bytes[code] : -1;
}

const Bpe::Merge* Bpe::find(std::int32_t left, std::int32_t right) const {
  const std::uint64_t pair = pair_of(left, right);
  std::size_t at = slot_of(pair);
  for (;; at = (at + 1) & (merges_.size() - 1)) {
    if (merges_[at].pair == pair) return &merges_[at];
    if (merges_[at].pair == no_pair) return nullptr;
  }
}

std::uint32_t Bpe::rank(std::int32_t left, std::int32_t right) const {
  const Merge* merge = find(left, right);
  return merge == nullptr ? no_rank : merge->rank;
}

char32_t Bpe::next_character(std::string_view word, bool byte_level, std::size_t& at) {
  if (!byte_level) return utf8_next(word, at);
  return byte_level_char(static_cast<unsigned char>(word[at++]));
}

std::size_t Bpe::join_slot(char32_t left, char32_t right) {
  const std::uint64_t pair = pair_of(static_cast<std::int32_t>(left), static_cast<std::int32_t>(right));
  return static_cast<std::size_t>(pair * spread >> (64 - join_bits));
}

void Bpe::encode(std::string_view word, bool byte_level, BpeWork& work,
                 std::vector<std::int32_t>& ids) const {
  if (word.size() <= longest_cached || ignore_merges_) return encode_word(word, byte_level, work, ids);
  std::size_t begin = 0;
  std::size_t at = 0;
  char32_t left = next_character(word, byte_level, at);
  while (at < word.size()) {
    const std::size_t place = at;
    const char32_t right = next_character(word, byte_level, at);
    // Where a character isn't covered, an unknown token or bytes stand for it, of which the table knows
    // nothing.
    if (id_of(left) >= 0 && id_of(right) >= 0 && !may_join(left, right)) {
      encode_word(word.substr(begin, place - begin), byte_level, work, ids);
      begin = place;
    }
    left = right;
  }
  encode_word(word.substr(begin), byte_level, work, ids);
}

void Bpe::encode_word(std::string_view word, bool byte_level, BpeWork& work,
                      std::vector<std::int32_t>& ids) const {
  const bool cached = word.size() <= longest_cached;
  const std::uint64_t hash = cached ? WordCache::hash(word) : 0;
  if (cached && work.cache.find(word, hash, ids)) return;
  const std::size_t before = ids.size();
  std::string_view text = word;
  if (byte_level && ignore_merges_) {
    work.text.clear();
    for (const char byte : word) utf8_append(work.text, byte_level_char(static_cast<unsigned char>(byte)));
    text = work.text;
  }
  if (const auto whole = ignore_merges_ ? vocabulary_.find(text) : std::nullopt) {
    ids.push_back(*whole);
  } else {
    symbols_of(word, byte_level, work.symbols);
    if (work.symbols.size() <= longest_short) {
      merge_short(work);
    } else {
      merge_long(work);
    }
    ids.insert(ids.end(), work.symbols.begin(), work.symbols.end());
  }
  if (cached) work.cache.insert(word, hash, ids.data() + before, ids.size() - before);
}

void Bpe::symbols_of(std::string_view word, bool byte_level, std::vector<std::int32_t>& symbols) const {
  symbols.clear();
  std::int32_t unknown = -1;  // an unknown token that waits: the next one may join it
  std::string character;
  for (std::size_t at = 0; at < word.size();) {
    const char32_t code = next_character(word, byte_level, at);
    const std::int32_t id = id_of(code);
    if (id >= 0) {
      if (unknown >= 0) symbols.push_back(unknown);
      unknown = -1;
      symbols.push_back(id);
      continue;
    }
    character.clear();
    utf8_append(character, code);
    add_uncovered(character, unknown, symbols);
  }
  if (unknown >= 0) symbols.push_back(unknown);
}

void Bpe::add_uncovered(std::string_view character, std::int32_t& unknown,
                        std::vector<std::int32_t>& symbols) const {
  const auto fallback = [&](char byte) { return fallback_[static_cast<unsigned char>(byte)]; };
  if (byte_fallback_ &&
      std::all_of(character.begin(), character.end(), [&](char byte) { return fallback(byte) >= 0; })) {
    // As in `tokenizers`, an unknown token that waits is not written before these bytes but behind them.
    for (const char byte : character) symbols.push_back(fallback(byte));
    return;
  }
  if (!unknown_) return;
  if (unknown >= 0 && !fuse_unknown_) symbols.push_back(unknown);
  unknown = *unknown_;
}

void Bpe::merge_short(BpeWork& work) const {
  auto& symbols = work.symbols;
  auto& ranks = work.ranks;  // ranks[i] is that of symbols i and i + 1
  ranks.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) ranks.push_back(rank(symbols[i], symbols[i + 1]));
  while (!ranks.empty()) {
    const auto lowest = std::min_element(ranks.begin(), ranks.end());
    if (*lowest == no_rank) return;
    const auto i = static_cast<std::size_t>(lowest - ranks.begin());
    symbols[i] = find(symbols[i], symbols[i + 1])->id;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks.erase(lowest);
    if (i > 0) ranks[i - 1] = rank(symbols[i - 1], symbols[i]);
    if (i < ranks.size()) ranks[i] = rank(symbols[i], symbols[i + 1]);
  }
}

void Bpe::merge_long(BpeWork& work) const {
  constexpr std::uint32_t none = UINT32_MAX;
  auto& symbols = work.symbols;
  auto& heap = work.heap;  // rank and place of the left symbol, lowest first; entries may have gone stale
  require(symbols.size() < none, "a word of {} characters is too long to encode", symbols.size());
  const auto count = static_cast<std::uint32_t>(symbols.size());
  work.next.resize(count);
  work.previous.resize(count);
  work.ranks.resize(count);
  heap.clear();
  for (std::uint32_t i = 0; i < count; ++i) {
    work.next[i] = i + 1 < count ? i + 1 : none;
    work.previous[i] = i > 0 ? i - 1 : none;
    work.ranks[i] = i + 1 < count ? rank(symbols[i], symbols[i + 1]) : no_rank;
    if (work.ranks[i] != no_rank) heap.push_back(static_cast<std::uint64_t>(work.ranks[i]) << 32 | i);
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto update = [&](std::uint32_t left) {
    const std::uint32_t right = work.next[left];
    work.ranks[left] = right == none ? no_rank : rank(symbols[left], symbols[right]);
    if (work.ranks[left] == no_rank) return;
    heap.push_back(static_cast<std::uint64_t>(work.ranks[left]) << 32 | left);
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto left = static_cast<std::uint32_t>(heap.back() & UINT32_MAX);
    const auto entry_rank = static_cast<std::uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (work.ranks[left] != entry_rank) continue;
    const std::uint32_t right = work.next[left];
    symbols[left] = find(symbols[left], symbols[right])->id;
    work.ranks[right] = no_rank;  // the right symbol is gone
    work.next[left] = work.next[right];
    if (work.next[left] != none) work.previous[work.next[left]] = left;
    update(left);
    if (work.previous[left] != none) update(work.previous[left]);
  }
  std::size_t kept = 0;
  for (std::uint32_t i = 0; i != none; i = work.next[i]) symbols[kept++] = symbols[i];
  symbols.resize(kept);
}

WordCache::WordCache() : slots_(256, Slot{}) {}

std::uint64_t WordCache::hash(std::string_view word) {
  std::uint64_t hash = word.size();
  while (!word.empty()) {
    std::uint64_t eight = 0;
    const std::size_t count = std::min(word.size(), sizeof eight);
    word.copy(reinterpret_cast<char*>(&eight), count);
    hash = (hash ^ eight) * spread;
    hash ^= hash >> 29;
    word.remove_prefix(count);
  }
  return hash * spread;
}

bool WordCache::find(std::string_view word, std::uint64_t hash, std::vector<std::int32_t>& ids) const {
  for (std::size_t at = place(hash); slots_[at].text_size != 0; at = (at + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[at];
    if (slot.hash != hash || word != std::string_view(texts_).substr(slot.text_at, slot.text_size)) continue;
    ids.insert(ids.end(), ids_.begin() + slot.ids_at, ids_.begin() + slot.ids_at + slot.ids_size);
    return true;
  }
  return false;
}

void WordCache::insert(std::string_view word, std::uint64_t hash, const std::int32_t* ids,
                       std::size_t count) {
  if (word.empty()) return;
  if (used_ * 2 >= slots_.size()) grow();
  std::size_t at = place(hash);
  while (slots_[at].text_size != 0) at = (at + 1) & (slots_.size() - 1);
  slots_[at] = {hash, static_cast<std::uint32_t>(texts_.size()), static_cast<std::uint32_t>(word.size()),
                static_cast<std::uint32_t>(ids_.size()), static_cast<std::uint32_t>(count)};
  texts_ += word;
  ids_.insert(ids_.end(), ids, ids + count);
  ++used_;
}

void WordCache::grow() {
  constexpr std::size_t most = std::size_t{1} << 17;
  if (slots_.size() == most) {
    std::fill(slots_.begin(), slots_.end(), Slot{});
    texts_.clear();
    ids_.clear();
    used_ = 0;
    return;
  }
  std::vector<Slot> old(slots_.size() * 4 > most ? most : slots_.size() * 4, Slot{});
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.text_size == 0) continue;
    std::size_t at = place(slot.hash);
    while (slots_[at].text_size != 0) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = slot;
  }
}

}  // namespace mla
