#include "mla/model/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/core/utf8.h"

namespace mla {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;

#if defined(__SANITIZE_ADDRESS__)
#define MLA_SLOW_BUILD 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MLA_SLOW_BUILD 1
#endif
#endif
#ifdef MLA_SLOW_BUILD
constexpr std::size_t long_run = 50'000;
#else
constexpr std::size_t long_run = 1'000'000;
#endif

const std::string data_directory = std::string(MLA_TEST_DATA) + "/tokenizer/";

const Tokenizer& tokenizer_of(const std::string& name) {
  static std::map<std::string, Tokenizer> loaded;
  const auto known = loaded.find(name);
  if (known != loaded.end()) return known->second;
  const std::string directory =
      name == "default" ? std::string(MLA_SOURCE_DIR) + "/models/default" : data_directory + name;
  return loaded.emplace(name, Tokenizer::load(directory)).first->second;
}

/// Everything a stream gives for `ids`; fails the test if a piece isn't whole characters.
std::string streamed(const Tokenizer& tokenizer, const Ids& ids, bool skip_special) {
  StreamDecoder decoder(tokenizer, skip_special);
  std::string text;
  for (const std::int32_t id : ids) {
    const std::string piece = decoder.push(id);
    EXPECT_EQ(utf8_invalid_at(piece), std::string::npos);
    text += piece;
  }
  return text + decoder.finish();
}

class TokenizerCases : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerCases, GiveWhatTheirLibraryGives) {
  const Tokenizer& tokenizer = tokenizer_of(GetParam());
  const std::string file = data_directory + GetParam() + "/cases.json";
  const json cases = parse_json(read_text(file), file);
  ASSERT_GT(cases.size(), 50u);
  for (const json& one : cases) {
    const Ids ids = one["ids"];
    if (one.contains("text")) {
      EXPECT_EQ(tokenizer.encode(one["text"].get<std::string>()), ids) << one["text"];
    }
    if (one.contains("prompt")) {
      EXPECT_EQ(tokenizer.encode_prompt(one["text"].get<std::string>()), one["prompt"].get<Ids>())
          << one["text"];
    }
    const bool both = one.contains("shown");  // else the case shows special tokens
    EXPECT_EQ(tokenizer.decode(ids, both), one["decoded"].get<std::string>()) << one;
    EXPECT_EQ(streamed(tokenizer, ids, both), one["decoded"].get<std::string>()) << one;
    if (both) {
      EXPECT_EQ(tokenizer.decode(ids, false), one["shown"].get<std::string>()) << one;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Committed, TokenizerCases,
                         ::testing::Values("deepseek-v3", "llama", "metaspace", "gpt2", "kimi"));

class ByteLevelTokenizers : public ::testing::TestWithParam<const char*> {};

TEST_P(ByteLevelTokenizers, DecodeWhatTheyEncodedOnEveryPlane) {
  const Tokenizer& tokenizer = tokenizer_of(GetParam());
  for (char32_t plane = 0; plane <= 0x10; ++plane) {
    std::string text;
    for (char32_t code = plane << 16; code < (plane + 1) << 16; code += plane == 0 ? 1 : 7) {
      if (code < 0xD800 || code > 0xDFFF) utf8_append(text, code);
      if (code % 64 == 63) text += " word\n";
    }
    const Ids ids = tokenizer.encode(text);
    EXPECT_EQ(tokenizer.decode(ids, false), text) << "plane " << static_cast<int>(plane);
    EXPECT_EQ(streamed(tokenizer, ids, false), text) << "plane " << static_cast<int>(plane);
  }
}

TEST_P(ByteLevelTokenizers, StreamAnyIdsAsTheyDecode) {
  const Tokenizer& tokenizer = tokenizer_of(GetParam());
  std::mt19937 random(4);
  for (int round = 0; round < 300; ++round) {
    Ids ids;
    for (int i = 0; i < 12; ++i) {
      const std::int64_t range = i % 2 == 0 ? 260 : tokenizer.vocab_size();
      ids.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(range)));
    }
    EXPECT_EQ(streamed(tokenizer, ids, true), tokenizer.decode(ids));
  }
}

INSTANTIATE_TEST_SUITE_P(All, ByteLevelTokenizers,
                         ::testing::Values("deepseek-v3", "gpt2", "kimi", "default"));

TEST(Tokenizer, KnowsItsSpecialTokens) {
  const Tokenizer& v3 = tokenizer_of("deepseek-v3");
  EXPECT_EQ(v3.vocab_size(), 128815);
  EXPECT_EQ(v3.bos_id(), 0);
  EXPECT_EQ(v3.eos_id(), 1);
  EXPECT_TRUE(v3.is_special(0));
  EXPECT_FALSE(v3.is_special(128803));
  EXPECT_FALSE(v3.is_special(-1));
  EXPECT_FALSE(v3.is_special(1 << 30));
  EXPECT_EQ(v3.id_of("Ġthe"), 270);
  EXPECT_EQ(v3.id_of("<｜User｜>"), 128803);
  EXPECT_EQ(v3.id_of("no such token"), std::nullopt);
  EXPECT_EQ(v3.encode_prompt("Hi"), (Ids{0, 23166}));
  EXPECT_EQ(v3.encode("Hi"), Ids{23166});
  const Tokenizer& embedded = tokenizer_of("default");
  EXPECT_EQ(embedded.vocab_size(), 4096);
  EXPECT_EQ(embedded.encode_prompt("God"), embedded.encode("God"));
  EXPECT_EQ(embedded.bos_id(), std::nullopt);
}

TEST(Tokenizer, KnowsWhatKimisConfigNames) {
  const Tokenizer& kimi = tokenizer_of("kimi");
  EXPECT_EQ(kimi.vocab_size(), 1100 + 258);
  EXPECT_EQ(kimi.bos_id(), 1100);
  EXPECT_EQ(kimi.eos_id(), 1101);
  EXPECT_TRUE(kimi.is_special(1102));
  EXPECT_FALSE(kimi.is_special(1111)) << "<|tool_calls_section_begin|>";
  EXPECT_EQ(kimi.id_of("<|reserved_token_1105|>"), 1105);
  EXPECT_EQ(kimi.id_of("Ġ"), kimi.encode(" ").front());
  EXPECT_TRUE(Tokenizer::is_in(data_directory + "kimi"));
  EXPECT_FALSE(Tokenizer::is_in(data_directory));
}

TEST(Tokenizer, RefusesIdsThatAreNoTokens) {
  const Tokenizer& tokenizer = tokenizer_of("gpt2");
  const auto message = [&](const Ids& ids) -> std::string {
    try {
      tokenizer.decode(ids);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  const std::string highest = std::to_string(tokenizer.vocab_size() - 1);
  EXPECT_EQ(message({-1}), "token id -1 is out of range: the vocabulary has ids from 0 to " + highest);
  EXPECT_EQ(message({65, 99999}),
            "token id 99999 is out of range: the vocabulary has ids from 0 to " + highest);
  EXPECT_EQ(message({65}), "no error");
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const Tokenizer& tokenizer = tokenizer_of("default");
  for (const std::string broken :
       {"ab\xFF", "ab\xC3", "ab\xED\xA0\x80", "ab\xC0\x80", "ab\xF4\x90\x80\x80", "ab\x80"}) {
    try {
      tokenizer.encode(broken);
      ADD_FAILURE() << "accepted " << testing::PrintToString(broken);
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("byte 2 of "), std::string::npos) << error.what();
    }
  }
}

TEST(Tokenizer, LongRunsTakeLittleTime) {
  for (const char* name : {"deepseek-v3", "llama", "metaspace", "gpt2"}) {
    for (const std::string unit : {"a", " ", "\n", "9", "ab", "\xF0\x9F\x98\x80", "<", "Gg"}) {
      std::string text;
      while (text.size() < long_run) text += unit;
      const auto begin = std::chrono::steady_clock::now();
      const Ids ids = tokenizer_of(name).encode(text);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      EXPECT_LT(took.count(), 20) << name << " " << unit;  // 0.2 s or less without sanitizers
      EXPECT_GT(ids.size(), 0u);
    }
  }
}

TEST(Tokenizer, StreamHoldsCharactersTogether) {
  const Tokenizer& tokenizer = tokenizer_of("default");
  const std::string text = "a\xF0\x9F\x98\x80z";
  const Ids ids = tokenizer.encode(text);
  ASSERT_EQ(ids.size(), 6u);
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(ids[0]), "a");
  for (int i = 1; i < 4; ++i) EXPECT_EQ(decoder.push(ids[static_cast<std::size_t>(i)]), "");
  EXPECT_EQ(decoder.push(ids[4]), "\xF0\x9F\x98\x80");
  EXPECT_EQ(decoder.push(ids[5]), "z");
  EXPECT_EQ(decoder.push(ids[1]), "");
  EXPECT_EQ(decoder.finish(), utf8_replacement);
}

}  // namespace
}  // namespace mla
