#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mla {

/// The tokenizer of a checkpoint, from Hugging Face's `tokenizer.json`: byte-level BPE as DeepSeek's and
/// GPT-2's, and the SentencePiece kind that Llama and MiniCPM3 use; or from the `tiktoken.model` that Kimi's
/// checkpoints have instead. Gives the ids and texts that the libraries `tokenizers` and `tiktoken` give; a
/// file that asks for something we lack is an Error when it's loaded. Immutable and cheap to copy; every
/// method may be called from several threads at once.
class Tokenizer {
 public:
  /// Loads `directory`/tokenizer.json, and `directory`/tokenizer_config.json if it's there; or, if there is
  /// no tokenizer.json, `directory`/tiktoken.model and tokenizer_config.json. Throws Error naming file,
  /// field, what was found and what was expected.
  static Tokenizer load(const std::filesystem::path& directory);

  /// Whether a directory has one of the two.
  static bool is_in(const std::filesystem::path& directory);

  /// The same from the files' texts; `tokenizer_config_json` may be empty. `source` names the first in
  /// Errors.
  static Tokenizer parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                         const std::string& source);
  static Tokenizer parse_tiktoken(std::string_view tiktoken_model, std::string_view tokenizer_config_json,
                                  const std::string& source);

  /// The ids of a text. Adds nothing, but recognises the added tokens that the text contains. Throws Error
  /// naming the byte if `text` isn't UTF-8.
  std::vector<std::int32_t> encode(std::string_view text) const;

  /// The ids of a text that begins a conversation. What goes before and behind is what the post_processor's
  /// template says; add_bos_token and add_eos_token in tokenizer_config.json, where they are given, decide
  /// instead of it.
  std::vector<std::int32_t> encode_prompt(std::string_view text) const;

  /// The text of ids, as `tokenizers` decodes it: bytes that aren't UTF-8 become U+FFFD. Leaves special
  /// tokens out unless told otherwise. Throws Error if an id is out of range or belongs to no token.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special = true) const;

  /// Highest id + 1.
  std::int64_t vocab_size() const;

  /// The tokens that tokenizer_config.json names, else what the post_processor's template puts first or last.
  std::optional<std::int32_t> bos_id() const;
  std::optional<std::int32_t> eos_id() const;

  /// The id of a token as the file spells it (a byte-level token with Ġ for a space).
  std::optional<std::int32_t> id_of(std::string_view token) const;

  /// Whether the id is an added token marked special; false for ids that don't exist.
  bool is_special(std::int32_t id) const;

 private:
  friend class StreamDecoder;
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}
  /// The tokenizer of parts that are complete but for the size and what goes around a prompt.
  static Tokenizer completed(std::shared_ptr<Parts> parts, const nlohmann::json* post_processor,
                             std::string_view config_json, const std::string& source);
  std::shared_ptr<const Parts> parts_;
};

/// Decodes tokens as they come. All that push and finish return, put together, is decode of all ids; every
/// piece is whole UTF-8 characters, so a character that several tokens spell comes with the last of them.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  /// The text that is certain after this token, often of it alone, sometimes none. Throws Error as decode
  /// does.
  std::string push(std::int32_t id);

  /// The text still held back (U+FFFD for a cut character). Nothing may be pushed after it.
  std::string finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mla
