#include "mla/model/tokenizer/token_decoder.h"

#include "mla/core/error.h"
#include "mla/model/tokenizer/bpe.h"
#include "mla/model/tokenizer/fields.h"

namespace mla {

using nlohmann::json;

TokenDecoder TokenDecoder::parse(const json* value, const std::string& source) {
  TokenDecoder decoder;
  if (value == nullptr) {
    decoder.steps_.emplace_back(Join{});
  } else {
    decoder.read(*value, source, "decoder");
  }
  return decoder;
}

void TokenDecoder::read(const json& value, const std::string& source, const std::string& path) {
  TokenizerFields fields(value, source, path);
  const auto character = [&](const std::string& key) {
    std::string text = fields.text(key);
    if (text.empty() || utf8_step(text, 0).length != text.size()) fields.wrong(key, "one character");
    return text;
  };
  const std::string type = fields.text("type");
  if (type == "Sequence") {
    const json& parts = fields.array("decoders");
    for (std::size_t i = 0; i < parts.size(); ++i) {
      read(parts[i], source, fmt::format("{}.decoders[{}]", path, i));
    }
  } else if (type == "ByteLevel") {
    for (const std::string ignored : {"add_prefix_space", "trim_offsets", "use_regex"})
      fields.flag(ignored, true);
    steps_.emplace_back(ByteLevel{});
  } else if (type == "Replace") {
    TextPattern pattern(fields.find("pattern"), source, fields.where("pattern"));
    const std::string content = fields.text("content");
    if (pattern.is_regex() && content.find('$') != std::string::npos) {
      fields.wrong("content", "no reference to a group ($)");
    }
    steps_.emplace_back(Replace{std::move(pattern), content});
  } else if (type == "ByteFallback") {
    steps_.emplace_back(ByteFallback{});
  } else if (type == "Fuse") {
    steps_.emplace_back(Fuse{});
  } else if (type == "Strip") {
    const auto count = [&](const std::string& key) {
      return static_cast<std::size_t>(fields.number(key, 0, INT32_MAX));
    };
    steps_.emplace_back(Strip{character("content"), count("start"), count("stop")});
  } else if (type == "Metaspace") {
    const bool prefix = fields.flag("add_prefix_space", true);
    fields.flag("split", true);
    fields.find("str_rep");
    const std::string scheme =
        fields.find("prepend_scheme") == nullptr ? "always" : fields.text("prepend_scheme");
    if (scheme != "always" && scheme != "first" && scheme != "never") {
      fields.wrong("prepend_scheme", "always, first or never");
    }
    steps_.emplace_back(Metaspace{character("replacement"), prefix && scheme != "never"});
  } else {
    fields.wrong("type", "Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip or Metaspace");
  }
  fields.done();
}

namespace {

/// `text` with the byte of each byte_level_char in its place, or `text` itself if some character is none.
std::string spelled_bytes(std::string_view text) {
  std::string bytes;
  for (std::size_t at = 0; at < text.size();) {
    const int byte = byte_level_byte(utf8_next(text, at));
    if (byte < 0) return std::string(text);
    bytes.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
  }
  return bytes;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/// The byte that `<0xHH>` names, or -1. Takes `<0x+H>` for 0H too, as `tokenizers` does.
int fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || !token.ends_with(">")) return -1;
  const int high = token[3] == '+' ? 0 : hex_digit(token[3]);
  const int low = hex_digit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string stripped(std::string_view text, const TokenDecoder::Strip& step) {
  for (std::size_t i = 0; i < step.start && text.starts_with(step.content); ++i)
    text.remove_prefix(step.content.size());
  for (std::size_t i = 0; i < step.stop && text.ends_with(step.content); ++i)
    text.remove_suffix(step.content.size());
  return std::string(text);
}

}  // namespace

TokenDecoding::TokenDecoding(const TokenDecoder& decoder)
    : decoder_(decoder), states_(decoder.steps().size()) {
  bool fused = false;
  for (std::size_t i = 0; i < states_.size(); ++i) {
    const auto& step = decoder.steps()[i];
    const auto* strip = std::get_if<TokenDecoder::Strip>(&step);
    const bool streams = std::holds_alternative<TokenDecoder::Fuse>(step) ||
                         std::holds_alternative<TokenDecoder::Metaspace>(step) ||
                         (strip != nullptr && strip->stop == 0);
    states_[i].fused = fused;
    states_[i].hold = fused && !streams;
    fused = fused || std::holds_alternative<TokenDecoder::Fuse>(step) ||
            std::holds_alternative<TokenDecoder::ByteLevel>(step);
  }
}

void TokenDecoding::push(std::string_view token, std::string& out) {
  given_ += token.size();
  give(0, token, out);
}

void TokenDecoding::finish(std::string& out) {
  end(0, out);
}

void TokenDecoding::give(std::size_t step, std::string_view piece, std::string& out) {
  if (step == states_.size()) {
    out += piece;
  } else if (states_[step].hold) {
    states_[step].held += piece;
  } else {
    std::visit([&](const auto& chosen) { run(chosen, step, piece, out); }, decoder_.steps()[step]);
  }
}

void TokenDecoding::end(std::size_t step, std::string& out) {
  if (step == states_.size()) return;
  State& state = states_[step];
  if (state.hold) {
    state.hold = false;
    const std::string token = std::move(state.held);
    state.held.clear();
    give(step, token, out);
  }
  if (std::holds_alternative<TokenDecoder::ByteFallback>(decoder_.steps()[step])) end_run(step, out);
  if (std::holds_alternative<TokenDecoder::ByteLevel>(decoder_.steps()[step])) {
    std::string rest;
    state.repair.finish(rest);
    if (!rest.empty()) give(step + 1, rest, out);
  }
  end(step + 1, out);
}

void TokenDecoding::run(const TokenDecoder::Replace& step, std::size_t at, std::string_view piece,
                        std::string& out) {
  const std::string text = step.pattern.replace(piece, step.content);
  check_growth(given_, text.size());
  give(at + 1, text, out);
}

void TokenDecoding::run(const TokenDecoder::Strip& step, std::size_t at, std::string_view piece,
                        std::string& out) {
  State& state = states_[at];
  if (!state.fused || step.stop != 0) return give(at + 1, stripped(piece, step), out);
  while (!piece.empty() && !state.past_start) {
    state.past_start = state.count == step.start || !piece.starts_with(step.content);
    if (state.past_start) break;
    piece.remove_prefix(step.content.size());
    ++state.count;
  }
  if (!piece.empty()) give(at + 1, piece, out);
}

void TokenDecoding::run(const TokenDecoder::Metaspace& step, std::size_t at, std::string_view piece,
                        std::string& out) {
  State& state = states_[at];
  const bool first = state.fused || state.count == 0;
  state.count = 1;
  std::string text;
  while (!piece.empty()) {
    const bool space = piece.starts_with(step.replacement);
    const std::size_t length = space ? step.replacement.size() : 1;
    if (!space) text += piece[0];
    if (space && !(first && step.drop_first)) text += ' ';
    piece.remove_prefix(length);
  }
  give(at + 1, text, out);
}

void TokenDecoding::run(const TokenDecoder::Join&, std::size_t at, std::string_view piece, std::string& out) {
  std::string text = states_[at].count == 0 ? "" : " ";
  states_[at].count = 1;
  give(at + 1, text.append(piece), out);
}

void TokenDecoding::run(const TokenDecoder::ByteFallback&, std::size_t at, std::string_view piece,
                        std::string& out) {
  const int byte = fallback_byte(piece);
  if (byte >= 0) {
    states_[at].held.push_back(static_cast<char>(static_cast<unsigned char>(byte)));
    return;
  }
  end_run(at, out);
  give(at + 1, piece, out);
}

void TokenDecoding::end_run(std::size_t step, std::string& out) {
  const std::string bytes = std::move(states_[step].held);
  states_[step].held.clear();
  if (bytes.empty()) return;
  if (utf8_invalid_at(bytes) == std::string_view::npos) return give(step + 1, bytes, out);
  for (std::size_t i = 0; i < bytes.size(); ++i) give(step + 1, utf8_replacement, out);
}

void TokenDecoding::run(const TokenDecoder::ByteLevel&, std::size_t at, std::string_view piece,
                        std::string& out) {
  std::string text;
  states_[at].repair.push(spelled_bytes(piece), text);
  if (!text.empty()) give(at + 1, text, out);
}

void TokenDecoding::run(const TokenDecoder::Fuse&, std::size_t at, std::string_view piece, std::string& out) {
  if (!piece.empty()) give(at + 1, piece, out);
}

}  // namespace mla
