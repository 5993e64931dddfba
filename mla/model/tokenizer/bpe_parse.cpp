#include <bit>

#include "mla/core/error.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/bpe.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {

using nlohmann::json;

namespace {

char32_t last_character(std::string_view text) {
  std::size_t at = text.size() - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return utf8_next(text, at);
}

}  // namespace

Bpe Bpe::parse(const json& model, const std::string& source) {
  TokenizerFields fields(model, source, "model");
  const std::string type = fields.text("type");
  require(type == "BPE", "{}: found {}, expected \"BPE\"", fields.place("type"), shown_text(type));
  if (const json* dropout = fields.find("dropout")) {
    if (!dropout->is_number() || dropout->get<double>() != 0) fields.wrong("dropout", "null");
  }
  for (const std::string key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (fields.find(key) != nullptr && !fields.text(key).empty()) fields.wrong(key, "null");
  }
  Bpe bpe;
  bpe.ignore_merges_ = fields.flag("ignore_merges", false);
  bpe.byte_fallback_ = fields.flag("byte_fallback", false);
  bpe.fuse_unknown_ = fields.flag("fuse_unk", false);
  bpe.read_vocabulary(fields.object("vocab"), fields.place("vocab"));
  bpe.read_merges(fields.array("merges"), fields.place("merges"));
  bpe.index_characters();
  if (fields.find("unk_token") != nullptr) {
    bpe.unknown_ = bpe.vocabulary_.find(fields.text("unk_token"));
    if (!bpe.unknown_) fields.wrong("unk_token", "a token of model.vocab");
  }
  fields.done();
  return bpe;
}

void Bpe::read_vocabulary(const json& vocab, const std::string& place) {
  for (const auto& [token, id] : vocab.items()) {
    if (!id.is_number_unsigned() ||
        id.get<std::uint64_t>() > static_cast<std::uint64_t>(Vocabulary::max_id)) {
      fail("{}: token {} has the id {}, expected an integer from 0 to {}", place, shown_text(token),
           shown(id), Vocabulary::max_id);
    }
    if (!vocabulary_.add(token, id.get<std::int32_t>())) {
      fail("{}: tokens {} and {} have the same id {}", place,
           shown_text(*vocabulary_.token(id.get<std::int32_t>())), shown_text(token), shown(id));
    }
  }
}

void Bpe::read_merges(const json& merges, const std::string& place) {
  require(merges.size() < no_rank, "{}: {} merges are too many", place, merges.size());
  joins_.assign(std::size_t{1} << join_bits, false);
  std::vector<Merge> read;
  read.reserve(merges.size());
  std::string left, right, result;
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const json& entry = merges[i];
    if (entry.is_string()) {
      const auto& text = entry.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const std::size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        fail("{}[{}]: found {}, expected two tokens with a space between", place, i, shown(entry));
      }
      left.assign(text, 0, space);
      right.assign(text, space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      left = entry[0].get_ref<const std::string&>();
      right = entry[1].get_ref<const std::string&>();
    } else {
      fail("{}[{}]: found {}, expected a string or a pair of strings", place, i, shown(entry));
    }
    const auto id_of = [&](const std::string& token) {
      const auto id = vocabulary_.find(token);
      if (!id) {
        fail("{}[{}]: merges {} and {}, but {} is not in model.vocab", place, i, shown_text(left),
             shown_text(right), shown_text(token));
      }
      return *id;
    };
    const std::uint64_t pair = pair_of(id_of(left), id_of(right));
    if (!left.empty() && !right.empty()) {
      std::size_t first = 0;
      const char32_t next = utf8_next(right, first);
      joins_[join_slot(last_character(left), next)] = true;
    }
    result.assign(left).append(right);
    read.push_back({pair, static_cast<std::uint32_t>(read.size()), id_of(result)});
  }
  index_merges(read);
}

void Bpe::index_merges(const std::vector<Merge>& merges) {
  const std::size_t slots = std::bit_ceil(merges.size() * 2 + 2);
  merges_.assign(slots, Merge{no_pair, 0, 0});
  merges_shift_ = 64 - std::countr_zero(slots);
  for (const Merge& merge : merges) {
    std::size_t at = slot_of(merge.pair);
    while (merges_[at].pair != no_pair && merges_[at].pair != merge.pair) at = (at + 1) & (slots - 1);
    merges_[at] = merge;
  }
}

void Bpe::index_characters() {
  fallback_.fill(-1);
  for (std::int64_t id = 0; id < vocabulary_.size(); ++id) {
    const std::string* token = vocabulary_.token(id);
    if (token == nullptr || token->empty()) continue;
    std::size_t end = 0;
    const char32_t code = utf8_next(*token, end);
    if (end != token->size()) continue;
    if (code >= by_character_.size()) by_character_.resize(code + 1, -1);
    by_character_[code] = static_cast<std::int32_t>(id);
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    fallback_[byte] = vocabulary_.find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
  }
}

}  // namespace mla
