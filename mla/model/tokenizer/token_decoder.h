#pragma once
#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "mla/core/utf8.h"
#include "mla/model/tokenizer/normalizer.h"

namespace mla {

/// How tokenizer.json makes text of tokens: its steps, each of which gets the tokens that the step before it
/// gives.
class TokenDecoder {
 public:
  struct Replace {
    TextPattern pattern;
    std::string content;
  };
  struct Strip {  // takes up to `start` characters `content` off the beginning and `stop` off the end
    std::string content;
    std::size_t start, stop;
  };
  struct Metaspace {  // `replacement` is a space, or nothing in the first token if `drop_first`
    std::string replacement;
    bool drop_first;
  };
  struct Join {};          // a space between tokens: what happens without a decoder
  struct ByteFallback {};  // a run of <0xHH> is text if it is UTF-8, else one U+FFFD for each
  struct ByteLevel {};     // byte_level_char back to bytes; one text, broken UTF-8 repaired with U+FFFD
  struct Fuse {};          // all tokens become one
  using Step = std::variant<Replace, Strip, Metaspace, Join, ByteFallback, ByteLevel, Fuse>;

  /// Reads the field `decoder` (nullptr: none). Throws Error naming file and field for a type we lack.
  static TokenDecoder parse(const nlohmann::json* value, const std::string& source);

  const std::vector<Step>& steps() const { return steps_; }

 private:
  void read(const nlohmann::json& value, const std::string& source, const std::string& path);

  std::vector<Step> steps_;
};

/// One text being decoded, token by token. The total of what push and finish append doesn't depend on how
/// long one waits between tokens: decoding at once and streaming are the same code.
class TokenDecoding {
 public:
  /// `decoder` must outlive this.
  explicit TokenDecoding(const TokenDecoder& decoder);

  /// Takes the next token and appends to `out` what is certain by now: whole characters only. A step that
  /// must see the end of a token first holds it back, so a decoder that works on the fused text appends
  /// nothing before finish.
  void push(std::string_view token, std::string& out);

  /// Appends what was held back.
  void finish(std::string& out);

 private:
  /// What a step remembers.
  struct State {
    bool fused = false;     // the step gets one token, in pieces
    bool hold = false;      // so it waits for the end of it
    std::string held;       // the token so far, or a run of bytes
    std::size_t count = 0;  // tokens before this one, or bytes in the run, or characters taken off
    bool past_start = false;
    Utf8Repair repair;
  };

  void give(std::size_t step, std::string_view piece, std::string& out);
  void end(std::size_t step, std::string& out);
  void end_run(std::size_t step, std::string& out);

  void run(const TokenDecoder::Replace& step, std::size_t at, std::string_view piece, std::string& out);
  void run(const TokenDecoder::Strip& step, std::size_t at, std::string_view piece, std::string& out);
  void run(const TokenDecoder::Metaspace& step, std::size_t at, std::string_view piece, std::string& out);
  void run(const TokenDecoder::Join& step, std::size_t at, std::string_view piece, std::string& out);
  void run(const TokenDecoder::ByteFallback& step, std::size_t at, std::string_view piece, std::string& out);
  void run(const TokenDecoder::ByteLevel& step, std::size_t at, std::string_view piece, std::string& out);
  void run(const TokenDecoder::Fuse& step, std::size_t at, std::string_view piece, std::string& out);

  const TokenDecoder& decoder_;
  std::vector<State> states_;
  std::size_t given_ = 0;  // bytes of all tokens
};

}  // namespace mla
