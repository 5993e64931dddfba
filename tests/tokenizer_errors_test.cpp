#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "mla/core/error.h"
#include "mla/model/tokenizer.h"
#include "mla/model/tokenizer/regex.h"

namespace mla {
namespace {

using nlohmann::json;

/// A whole tokenizer.json of four tokens.
json document() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": ["a b"]}})");
}

std::string message(const std::string& text, const std::string& config = "") {
  try {
    Tokenizer::parse(text, config, "dir/tokenizer.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// The message for the document with the value at `pointer` replaced.
std::string message_with(const std::string& pointer, const json& value) {
  json changed = document();
  changed[json::json_pointer(pointer)] = value;
  return message(changed.dump());
}

void expect_has(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks " << part;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  if (text != "no error") {
    EXPECT_TRUE(text.starts_with("dir/tokenizer")) << text;
  }
}

TEST(TokenizerErrors, TheDocumentItselfIsGood) {
  EXPECT_EQ(message(document().dump()), "no error");
  const auto tokenizer = Tokenizer::parse(document().dump(), "", "x");
  EXPECT_EQ(tokenizer.encode("abc<s>z"), (std::vector<std::int32_t>{2, 3, 4}));
  EXPECT_EQ(tokenizer.decode(std::vector<std::int32_t>{2, 3, 4}, false), "ab c <s>");
}

TEST(TokenizerErrors, BrokenFilesAreNamed) {
  const std::string text = document().dump();
  expect_has(message(""), "dir/tokenizer.json: not valid JSON");
  for (std::size_t size = 1; size < text.size(); size += 13) {
    expect_has(message(text.substr(0, size)), "dir/tokenizer.json: not valid JSON");
  }
  expect_has(message("[]"), "the root: found an array, expected an object");
  expect_has(message("{}"), "model: found nothing, expected an object");
  expect_has(message(R"({"model": {}, "model": {}})"), "'model' occurs twice");
  expect_has(message(std::string(100'000, '[')), "nested deeper");
  expect_has(message("{\"model\": \"\xFF\"}"), "not valid JSON");
  std::string nested = R"({"type": "Lowercase"})";
  for (int i = 0; i < 20; ++i) nested = R"({"type": "Sequence", "normalizers": [)" + nested + "]}";
  expect_has(message_with("/normalizer", json::parse(nested)),
             "normalizers[0].type: found \"Lowercase\", expected ");
  EXPECT_THROW(Tokenizer::load("/no/such/directory"), Error);
}

/// A tiktoken.model of the 256 bytes and "ab".
std::string ranks() {
  constexpr const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (int byte = 0; byte < 256; ++byte)
    text += fmt::format("{}{}== {}\n", digits[byte >> 2], digits[byte % 4 << 4], byte);
  return text + "YWI= 256\n";
}

constexpr const char* kimi_config = R"({"tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]",
  "added_tokens_decoder": {"257": {"content": "[BOS]", "special": true}}})";

std::string tiktoken_message(const std::string& text, const std::string& config = kimi_config) {
  try {
    Tokenizer::parse_tiktoken(text, config, "dir/tokenizer_ranks");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(TokenizerErrors, RanksAreNamedByTheirLines) {
  EXPECT_EQ(tiktoken_message(ranks()), "no error");
  EXPECT_EQ(tiktoken_message(ranks() + "\r\n\n"), "no error");
  const auto tokenizer = Tokenizer::parse_tiktoken(ranks(), kimi_config, "x");
  EXPECT_EQ(tokenizer.encode("ab[BOS]\xC3\xA9"
                             "abc"),
            (std::vector<std::int32_t>{256, 257, 0xC3, 0xA9, 256, 99}));
  for (const char* line :
       {"YWI=", "YWI= ", "YWI 257", "Y*I= 257", "YWI= -1", "YWI= 2x", " 257", "= 257", "YWM= 99999999"})
    expect_has(tiktoken_message(ranks() + line), "line 258: found ");
  expect_has(tiktoken_message(ranks() + "YWI= 257"), "line 258: found \"YWI= 257\", whose token or rank");
  expect_has(tiktoken_message(ranks() + "YWM= 256"), "whose token or rank an earlier line has");
  expect_has(tiktoken_message(ranks() + "YWM= 258"), "found 258 tokens with ranks up to 258");
  expect_has(tiktoken_message("YWI= 0\n"), "found no token of the byte 0x00");
  expect_has(tiktoken_message(""), "found no token of the byte 0x00");
}

TEST(TokenizerErrors, ConfigsBesideRanksAreChecked) {
  const auto with = [](const std::string& tokens) {
    return tiktoken_message(
        ranks(), R"({"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": )" + tokens + "}");
  };
  EXPECT_EQ(with("null"), "no error");
  expect_has(tiktoken_message(ranks(), ""), "tokenizer_config.json: not valid JSON");
  expect_has(tiktoken_message(ranks(), "{}"), "tokenizer_class: found nothing, expected a string");
  expect_has(tiktoken_message(ranks(), R"({"tokenizer_class": "QWenTokenizer"})"),
             "found \"QWenTokenizer\", expected \"TikTokenTokenizer\"");
  expect_has(tiktoken_message(ranks(), R"({"tokenizer_class": "TikTokenTokenizer", "bos_token": "xyz"})"),
             "bos_token: found \"xyz\"");
  expect_has(with("[]"), "added_tokens_decoder: found an array, expected an object");
  for (const char* id : {"256", "515", "x", "", "257 ", "99999999999999999999"})
    expect_has(with(fmt::format(R"({{"{}": {{"content": "a"}}}})", id)), "expected 257 to 514");
  expect_has(with(R"({"257": "a"})"), "added_tokens_decoder.257: found \"a\", expected an object");
  expect_has(with(R"({"257": {"content": ""}})"), "added_tokens_decoder.257.content: found \"\"");
  expect_has(with(R"({"257": {"content": "u"}, "258": {"content": "u"}})"), "no other entry's");
  expect_has(with(R"({"257": {"content": "u", "special": 1}})"), "special: found 1, expected true or false");
}

TEST(TokenizerErrors, UnknownPartsAreNamed) {
  struct Case {
    std::string pointer;
    json value;
    std::string part;
  };
  const std::vector<Case> cases = {
      {"/version", "2.0", "version: found \"2.0\", expected \"1.0\""},
      {"/truncation", json::object(), "truncation: found an object, expected null"},
      {"/padding", json::object(), "padding: found an object, expected null"},
      {"/surplus", 1, "\"surplus\": found 1, expected no such field"},
      {"/normalizer",
       {{"type", "NFC"}},
       "normalizer.type: found \"NFC\", expected Sequence, Prepend or Replace"},
      {"/normalizer", 7, "normalizer: found 7, expected an object"},
      {"/normalizer", {{"type", "Prepend"}}, "normalizer.prepend: found nothing, expected a string"},
      {"/pre_tokenizer",
       {{"type", "BertPreTokenizer"}},
       "pre_tokenizer.type: found \"BertPreTokenizer\", expected"},
      {"/pre_tokenizer", json::object(), "pre_tokenizer.type: found nothing, expected a string"},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {nullptr}}},
       "pretokenizers[0]: found null, expected"},
      {"/post_processor",
       {{"type", "RobertaProcessing"}},
       "post_processor.type: found \"RobertaProcessing\""},
      {"/decoder", {{"type", "WordPiece"}}, "decoder.type: found \"WordPiece\", expected"},
      {"/decoder",
       {{"type", "Strip"}, {"content", "ab"}, {"start", 1}, {"stop", 0}},
       "decoder.content: found \"ab\""},
      {"/decoder",
       {{"type", "Strip"}, {"content", "a"}, {"start", -1}, {"stop", 0}},
       "decoder.start: found -1"},
      {"/model/type", "Unigram", "model.type: found \"Unigram\", expected \"BPE\""},
      {"/model/dropout", 0.1, "model.dropout: found 0.1, expected null"},
      {"/model/continuing_subword_prefix", "##",
       "model.continuing_subword_prefix: found \"##\", expected null"},
      {"/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix: found \"</w>\", expected null"},
      {"/model/new_option", true, "model.\"new_option\": found true, expected no such field"},
      {"/model/byte_fallback", "yes", "model.byte_fallback: found \"yes\", expected true or false"},
      {"/model/unk_token", "<unk>", "model.unk_token: found \"<unk>\", expected a token of model.vocab"},
  };
  for (const Case& one : cases) expect_has(message_with(one.pointer, one.value), one.part);
}

TEST(TokenizerErrors, BrokenVocabulariesAndMergesAreNamed) {
  expect_has(message_with("/model/vocab", json::array()), "model.vocab: found an array, expected an object");
  for (const json& id : {json(-1), json(1.5), json("1"), json(nullptr), json(1 << 24), json(UINT64_MAX)}) {
    expect_has(message_with("/model/vocab/c", id), "model.vocab: token \"c\" has the id " + id.dump());
  }
  expect_has(message_with("/model/vocab/c", 1), "model.vocab: tokens \"b\" and \"c\" have the same id 1");
  expect_has(message_with("/model/merges", nullptr), "model.merges: found null, expected an array");
  expect_has(message_with("/model/merges/0", "ab"), "model.merges[0]: found \"ab\", expected two tokens");
  expect_has(message_with("/model/merges/0", "a b c"), "model.merges[0]: found");
  expect_has(message_with("/model/merges/0", 1), "model.merges[0]: found 1, expected a string or a pair");
  expect_has(message_with("/model/merges/0", {"a"}),
             "model.merges[0]: found an array, expected a string or a pair");
  expect_has(message_with("/model/merges/0", "a z"),
             "model.merges[0]: merges \"a\" and \"z\", but \"z\" is not in");
  expect_has(message_with("/model/merges/0", {"b", "a"}),
             "merges \"b\" and \"a\", but \"ba\" is not in model.vocab");
}

TEST(TokenizerErrors, BrokenAddedTokensAreNamed) {
  expect_has(message_with("/added_tokens", 1), "added_tokens: found 1, expected an array");
  expect_has(message_with("/added_tokens/0/content", ""), "added_tokens[0].content: found \"\", expected");
  expect_has(message_with("/added_tokens/0/id", -4),
             "added_tokens[0].id: found -4, expected an integer from 0 to");
  expect_has(message_with("/added_tokens/0/id", 99999999), "added_tokens[0].id: found 99999999");
  expect_has(message_with("/added_tokens/0/id", 1), "in model.vocab that id is \"b\"");
  expect_has(message_with("/added_tokens/0/content", "a"), "in model.vocab it has the id 0");
  expect_has(message_with("/added_tokens/0/lstrip", 1),
             "added_tokens[0].lstrip: found 1, expected true or false");
  json twice = document();
  twice["added_tokens"].push_back(twice["added_tokens"][0]);
  expect_has(message(twice.dump()), "added_tokens[1]: \"<s>\" with the id 4 repeats");
  json gone = document();
  gone["added_tokens"][0]["normalized"] = true;
  gone["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "<s>"}}}, {"content", ""}};
  expect_has(message(gone.dump()), "added_tokens[0]: nothing is left of \"<s>\" after normalization");
}

TEST(TokenizerErrors, BrokenRegularExpressionsAreNamed) {
  const auto with = [](const std::string& pattern) {
    return message_with(
        "/pre_tokenizer",
        {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}});
  };
  EXPECT_EQ(with("\\p{L}+|\\s+(?!\\S)"), "no error");
  for (const std::string broken : {"(", "[a", "a{2,1}", "\\p{Nothing}", "*", "\\", "(?<=a+)b", "[z-a]"}) {
    expect_has(with(broken), "pre_tokenizer.pattern.Regex: regular expression " + json(broken).dump());
  }
  for (const std::string other : {"\\1", "[a&&b]", "[a[b]]", "\\p{N}{1,3}+", "a{2}?", "\\K", "(?x: a)",
                                  "(*FAIL)", "\\xC3", "(?R)", "a|(b(?i)c|d)", "\\X", "[\\W]"}) {
    expect_has(with(other), "is not supported");
  }
  expect_has(with(""), "pre_tokenizer.pattern.Regex: found \"\", expected a pattern that isn't empty");
  expect_has(message_with("/pre_tokenizer",
                          {{"type", "Split"}, {"pattern", {{"Glob", "*"}}}, {"behavior", "Isolated"}}),
             "pre_tokenizer.pattern.Regex: found nothing");
  expect_has(message_with("/pre_tokenizer",
                          {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Joined"}}),
             "pre_tokenizer.behavior: found \"Joined\", expected Removed, Isolated");
  const std::string hopeless = R"((?:a|aa|a)+$)";
  const Regex regex("(?:" + hopeless + "){1,9}z", "field");
  std::vector<Span> matches;
  try {
    regex.find_all(std::string(200, 'a') + "!", matches);
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("field: regular expression")) << error.what();
  }
}

TEST(TokenizerErrors, BrokenTemplatesAndConfigsAreNamed) {
  const json good = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", json::array()},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {4}}, {"tokens", {"<s>"}}}}}}};
  json root = document();
  root["post_processor"] = good;
  const auto tokenizer = Tokenizer::parse(root.dump(), "", "x");
  EXPECT_EQ(tokenizer.encode_prompt("a"), (std::vector<std::int32_t>{4, 0}));
  EXPECT_EQ(tokenizer.bos_id(), 4);
  const auto with = [&](const std::string& pointer, const json& value) {
    json changed = good;
    changed[json::json_pointer(pointer)] = value;
    return message_with("/post_processor", changed);
  };
  expect_has(with("/special_tokens/<s>/ids/0", 5),
             "post_processor.special_tokens.<s>.ids: found 5, expected ids from 0");
  expect_has(with("/single/0/SpecialToken/id", "<t>"), "post_processor.special_tokens.<t>: found nothing");
  expect_has(with("/single/1/Sequence/id", "B"), "post_processor.single[1].Sequence.id: found \"B\"");
  expect_has(with("/single", json::array()), "post_processor.single: found an array, expected a template");

  const auto configured = [&](const std::string& config) { return message(root.dump(), config); };
  EXPECT_EQ(configured(R"({"add_bos_token": false, "bos_token": null, "model_max_length": 5})"), "no error");
  expect_has(configured("{"), "dir/tokenizer_config.json: not valid JSON");
  expect_has(configured(R"({"bos_token": "<t>"})"),
             "dir/tokenizer_config.json: bos_token: found \"<t>\", expected a token");
  expect_has(configured(R"({"bos_token": 5})"),
             "tokenizer_config.json: bos_token: found 5, expected a string");
  expect_has(configured(R"({"add_bos_token": true})"),
             "add_bos_token: found true, but there is no bos_token");
  expect_has(configured(R"({"add_eos_token": "yes"})"),
             "add_eos_token: found \"yes\", expected true or false");
  const auto both = Tokenizer::parse(
      root.dump(), R"({"add_bos_token": false, "add_eos_token": true, "eos_token": {"content": "c"}})", "x");
  EXPECT_EQ(both.encode_prompt("a"), (std::vector<std::int32_t>{0, 3}));
  EXPECT_EQ(both.eos_id(), 3);
}

TEST(TokenizerErrors, StepsCannotLengthenATextWithoutBound) {
  json step = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaaaa"}};
  const std::vector<json> steps(40, step);
  const auto refused = [](const json& root, const std::string& text) {
    const auto tokenizer = Tokenizer::parse(root.dump(), "", "x");
    EXPECT_THROW(tokenizer.decode(tokenizer.encode(text)), Error);
  };
  json normalized = document();
  normalized["normalizer"] = {{"type", "Sequence"}, {"normalizers", steps}};
  refused(normalized, "a");
  json decoded = document();
  decoded["decoder"] = {{"type", "Sequence"}, {"decoders", steps}};
  refused(decoded, "a");
  json spelled = document();
  const json spell = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  spelled["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", std::vector<json>(60, spell)}};
  refused(spelled, "\xC3\xA9");
}

}  // namespace
}  // namespace mla
