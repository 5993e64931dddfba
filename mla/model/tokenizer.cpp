#include "mla/model/tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer/added_tokens.h"
#include "mla/model/tokenizer/bpe.h"
#include "mla/model/tokenizer/fields.h"
#include "mla/model/tokenizer/normalizer.h"
#include "mla/model/tokenizer/pre_tokenizer.h"
#include "mla/model/tokenizer/prompt_template.h"
#include "mla/model/tokenizer/tiktoken.h"
#include "mla/model/tokenizer/token_decoder.h"

namespace mla {

using nlohmann::json;

struct Tokenizer::Parts {
  Normalizer normalizer;
  Bpe model;
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  TokenDecoder decoder;
  PromptTemplate prompt;

  const std::string& token(std::int32_t id) const;
  std::int64_t size = 0;  // highest id + 1
  void encode_text(std::string_view text, bool at_start, struct TokenizerRun& run) const;
};

namespace {

void check_head(TokenizerFields& fields) {
  if (fields.find("version") != nullptr && fields.text("version") != "1.0")
    fields.wrong("version", "\"1.0\"");
  for (const std::string key : {"truncation", "padding"}) {
    if (fields.find(key) != nullptr) fields.wrong(key, "null (it would change what encode gives)");
  }
}

std::string config_beside(const std::string& source) {
  return std::filesystem::path(source).replace_filename("tokenizer_config.json").string();
}

}  // namespace

/// One call of encode: its result so far and what it works with.
struct TokenizerRun {
  BpeWork work;
  PreTokenizer::Words words;
  std::vector<AddedTokens::Part> parts;
  std::vector<std::int32_t> ids;
};

Tokenizer Tokenizer::load(const std::filesystem::path& directory) {
  const auto config = directory / "tokenizer_config.json";
  const auto file = directory / "tokenizer.json", ranks = directory / "tiktoken.model";
  if (!std::filesystem::exists(file) && std::filesystem::exists(ranks))
    return parse_tiktoken(read_text(ranks), read_text(config), ranks.string());
  return parse(read_text(file), std::filesystem::exists(config) ? read_text(config) : "", file.string());
}

bool Tokenizer::is_in(const std::filesystem::path& directory) {
  std::error_code ignored;
  return std::filesystem::exists(directory / "tokenizer.json", ignored) ||
         std::filesystem::exists(directory / "tiktoken.model", ignored);
}

Tokenizer Tokenizer::parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                           const std::string& source) {
  const json root = parse_json(tokenizer_json, source);
  TokenizerFields fields(root, source, "");
  check_head(fields);
  auto parts = std::make_shared<Parts>();
  parts->normalizer = Normalizer::parse(fields.find("normalizer"), source);
  parts->pre_tokenizer = PreTokenizer::parse(fields.find("pre_tokenizer"), source);
  parts->model = Bpe::parse(fields.object("model"), source);
  parts->added =
      AddedTokens::parse(fields.find("added_tokens"), source, parts->normalizer, parts->model.vocabulary());
  parts->decoder = TokenDecoder::parse(fields.find("decoder"), source);
  const json* post_processor = fields.find("post_processor");
  fields.done();
  return completed(parts, post_processor, tokenizer_config_json, source);
}

Tokenizer Tokenizer::parse_tiktoken(std::string_view tiktoken_model, std::string_view tokenizer_config_json,
                                    const std::string& source) {
  const std::string config = config_beside(source);
  auto parts = std::make_shared<Parts>();
  parts->model = Bpe::parse_ranks(tiktoken_model, source);
  const Vocabulary& vocabulary = parts->model.vocabulary();
  const json added =
      tiktoken_added_tokens(parse_json(tokenizer_config_json, config), config, vocabulary.size());
  parts->added = AddedTokens::parse(&added, config, parts->normalizer, vocabulary);
  parts->pre_tokenizer = PreTokenizer::parse(&tiktoken_pre_tokenizer(), "built in");
  parts->decoder = TokenDecoder::parse(&tiktoken_decoder(), "built in");
  return completed(parts, nullptr, tokenizer_config_json, source);
}

Tokenizer Tokenizer::completed(std::shared_ptr<Parts> parts, const json* post_processor,
                               std::string_view config_json, const std::string& source) {
  parts->size = parts->model.vocabulary().size();
  for (const AddedToken& token : parts->added.tokens())
    parts->size = std::max<std::int64_t>(parts->size, token.id + 1);
  const Tokenizer tokenizer(parts);
  const auto id_of = [&](std::string_view token) { return tokenizer.id_of(token); };
  parts->prompt = PromptTemplate::parse(post_processor, source, parts->size);
  if (!config_json.empty()) {
    const std::string config = config_beside(source);
    parts->prompt.configure(parse_json(config_json, config), config, id_of);
  }
  return tokenizer;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  const std::size_t invalid = utf8_invalid_at(text);
  if (invalid != std::string_view::npos) {
    fail("the text to encode is not UTF-8: byte {} of {} is 0x{:02X}", invalid, text.size(),
         static_cast<unsigned>(static_cast<unsigned char>(text[invalid])));
  }
  TokenizerRun run;
  std::vector<AddedTokens::Part> sections;
  parts_->added.split(text, false, sections);
  for (const auto& section : sections) {
    if (section.id >= 0) {
      run.ids.push_back(section.id);
    } else {
      parts_->encode_text(text.substr(section.begin, section.end - section.begin), section.begin == 0, run);
    }
  }
  return std::move(run.ids);
}

void Tokenizer::Parts::encode_text(std::string_view text, bool at_start, TokenizerRun& run) const {
  std::string normalized;
  if (!normalizer.empty()) {
    normalized = normalizer.apply(text);
    text = normalized;
  }
  added.split(text, true, run.parts);
  for (const auto& part : run.parts) {
    if (part.id >= 0) {
      run.ids.push_back(part.id);
      continue;
    }
    pre_tokenizer.split(text.substr(part.begin, part.end - part.begin), at_start && part.begin == 0,
                        run.words);
    for (const Span& piece : run.words.pieces) {
      model.encode(run.words.text.substr(piece.begin, piece.end - piece.begin), pre_tokenizer.byte_level(),
                   run.work, run.ids);
    }
  }
}

std::vector<std::int32_t> Tokenizer::encode_prompt(std::string_view text) const {
  std::vector<std::int32_t> ids = parts_->prompt.before();
  const std::vector<std::int32_t> inner = encode(text);
  ids.insert(ids.end(), inner.begin(), inner.end());
  ids.insert(ids.end(), parts_->prompt.behind().begin(), parts_->prompt.behind().end());
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  StreamDecoder decoder(*this, skip_special);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

const std::string& Tokenizer::Parts::token(std::int32_t id) const {
  require(id >= 0 && id < size, "token id {} is out of range: the vocabulary has ids from 0 to {}", id,
          size - 1);
  const AddedToken* token = added.find(id);
  if (token != nullptr) return token->text;
  const std::string* text = model.vocabulary().token(id);
  require(text != nullptr, "token id {} belongs to no token, though the vocabulary has ids from 0 to {}", id,
          size - 1);
  return *text;
}

std::int64_t Tokenizer::vocab_size() const {
  return parts_->size;
}

std::optional<std::int32_t> Tokenizer::bos_id() const {
  return parts_->prompt.bos();
}

std::optional<std::int32_t> Tokenizer::eos_id() const {
  return parts_->prompt.eos();
}

std::optional<std::int32_t> Tokenizer::id_of(std::string_view token) const {
  const AddedToken* added = parts_->added.find(token);
  return added != nullptr ? added->id : parts_->model.vocabulary().find(token);
}

bool Tokenizer::is_special(std::int32_t id) const {
  const AddedToken* token = parts_->added.find(id);
  return token != nullptr && token->special;
}

struct StreamDecoder::State {
  Tokenizer tokenizer;
  bool skip_special;
  TokenDecoding decoding;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : state_(new State{tokenizer, skip_special, TokenDecoding(tokenizer.parts_->decoder)}) {}

StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(std::int32_t id) {
  const std::string& token = state_->tokenizer.parts_->token(id);
  std::string text;
  if (!state_->skip_special || !state_->tokenizer.is_special(id)) state_->decoding.push(token, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  state_->decoding.finish(text);
  return text;
}

}  // namespace mla
