#include "mla/core/utf8.h"

#include <cstdint>
#include <cstring>

namespace mla {
namespace {

/// How a character that begins with some byte goes on.
struct Lead {
  int following;       // bytes after the first; -1 if no character begins so
  unsigned low, high;  // range of the second byte
};

Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {0, 0, 0};
  if (byte < 0xC2) return {-1, 0, 0};
  if (byte < 0xE0) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte < 0xF0) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte < 0xF4) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {-1, 0, 0};
}

}  // namespace

Utf8Step utf8_step(std::string_view text, std::size_t at) {
  Lead lead = lead_of(static_cast<unsigned char>(text[at]));
  if (lead.following < 0) return {Utf8Step::invalid, 1};
  std::size_t length = 1;
  for (int i = 0; i < lead.following; ++i, ++length) {
    if (at + length == text.size()) return {Utf8Step::incomplete, length};
    const auto byte = static_cast<unsigned char>(text[at + length]);
    if (byte < lead.low || byte > lead.high) return {Utf8Step::invalid, length};
    lead.low = 0x80;
    lead.high = 0xBF;
  }
  return {Utf8Step::valid, length};
}

std::size_t utf8_invalid_at(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t word = 0;
    if (at + sizeof word <= text.size()) {
      std::memcpy(&word, text.data() + at, sizeof word);
      if ((word & 0x8080808080808080u) == 0) {
        at += sizeof word;
        continue;
      }
    }
    const Utf8Step step = utf8_step(text, at);
    if (step.kind != Utf8Step::valid) return at;
    at += step.length;
  }
  return std::string_view::npos;
}

char32_t utf8_next(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[at + i]));
  };
  const char32_t first = byte(0);
  if (first < 0x80) {
    at += 1;
    return first;
  }
  if (first < 0xE0) {
    const char32_t code = (first & 0x1F) << 6 | (byte(1) & 0x3F);
    at += 2;
    return code;
  }
  if (first < 0xF0) {
    const char32_t code = (first & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    at += 3;
    return code;
  }
  const char32_t code =
      (first & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  at += 4;
  return code;
}

void utf8_append(std::string& text, char32_t code) {
  const auto put = [&](char32_t byte) {
    text.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
  };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

void Utf8Repair::push(std::string_view bytes, std::string& out) {
  pending_ += bytes;
  std::size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Step step = utf8_step(pending_, at);
    if (step.kind == Utf8Step::incomplete) break;
    if (step.kind == Utf8Step::valid) {
      out.append(pending_, at, step.length);
    } else {
      out += utf8_replacement;
    }
    at += step.length;
  }
  pending_.erase(0, at);
}

void Utf8Repair::finish(std::string& out) {
  if (!pending_.empty()) out += utf8_replacement;
  pending_.clear();
}

}  // namespace mla
