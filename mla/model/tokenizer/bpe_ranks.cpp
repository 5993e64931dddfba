// Bpe::parse_ranks: the file that tiktoken (https://github.com/openai/tiktoken, load_tiktoken_bpe) reads.
#include <charconv>

#include "mla/core/error.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/bpe.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {
namespace {

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/// The bytes that a text in base64 (RFC 4648, padded) stands for, each as byte_level_char spells it; nothing
/// if it is none.
std::string spelled_base64(std::string_view text) {
  std::string spelled;
  if (text.size() % 4 != 0) return spelled;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size() - padding; ++i) {
    const int value = base64_value(text[i]);
    if (value < 0) return {};
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    // Of four characters the first brings no byte, each other one.
    if (i % 4 != 0)
      utf8_append(spelled, byte_level_char(static_cast<unsigned char>(bits >> (6 - 2 * (i % 4)))));
  }
  return spelled;
}

}  // namespace

Bpe Bpe::parse_ranks(std::string_view text, const std::string& source) {
  Bpe bpe;
  bpe.ignore_merges_ = true;  // a word that is a token is that token
  bpe.read_ranks(text, source);
  std::vector<Merge> merges;
  for (std::int64_t id = 0; id < bpe.vocabulary_.size(); ++id) {
    const std::string_view token = *bpe.vocabulary_.token(id);
    for (std::size_t at = 0; utf8_next(token, at), at < token.size();) {
      const auto left = bpe.vocabulary_.find(token.substr(0, at)),
                 right = bpe.vocabulary_.find(token.substr(at));
      if (left && right)
        merges.push_back(
            {pair_of(*left, *right), static_cast<std::uint32_t>(id), static_cast<std::int32_t>(id)});
    }
  }
  bpe.index_merges(merges);
  bpe.index_characters();
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t character = byte_level_char(static_cast<unsigned char>(byte));
    require(bpe.id_of(character) >= 0, "{}: found no token of the byte 0x{:02X}, expected one of each byte",
            source, byte);
  }
  return bpe;
}

void Bpe::read_ranks(std::string_view text, const std::string& source) {
  std::int64_t count = 0;
  for (std::size_t at = 0, number = 1; at < text.size(); ++number) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    at = end + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const std::size_t space = std::min(line.find(' '), line.size());
    const std::string_view digits = line.substr(std::min(space + 1, line.size()));
    const std::string token = spelled_base64(line.substr(0, space));
    std::int32_t rank = -1;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    const bool is_rank = error == std::errc{} && stop == digits.data() + digits.size();
    require(!token.empty() && is_rank && rank >= 0 && rank <= Vocabulary::max_id,
            "{}: line {}: found {}, expected a token in base64, a space, and its rank from 0 to {}", source,
            number, shown_text(line), Vocabulary::max_id);
    require(vocabulary_.add(token, rank), "{}: line {}: found {}, whose token or rank an earlier line has",
            source, number, shown_text(line));
    ++count;
  }
  require(vocabulary_.size() == count,
          "{}: found {} tokens with ranks up to {}, expected each rank from 0 on", source, count,
          vocabulary_.size() - 1);
}

}  // namespace mla
