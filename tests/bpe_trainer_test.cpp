#include "mla/train/bpe_trainer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/core/utf8.h"
#include "mla/model/tokenizer.h"

namespace mla {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;
using Texts = std::vector<std::string>;

const std::string data_directory = std::string(MLA_TEST_DATA) + "/";
const Texts begin_and_end = {"<|begin|>", "<|end|>"};

BpeResult trained(std::string_view text, std::int64_t vocab_size, const Texts& special = begin_and_end,
                  std::int64_t min_count = 1) {
  BpeOptions options;
  options.vocab_size = vocab_size;
  options.special_tokens = special;
  options.min_count = min_count;
  return train_bpe(text, options);
}

Tokenizer tokenizer_of(const BpeResult& result) {
  return Tokenizer::parse(result.tokenizer_json, "", "trained");
}

/// "left right" of each merge in the file, in order.
Texts merges_of(const BpeResult& result) {
  Texts merges;
  const json document = parse_json(result.tokenizer_json, "trained");
  for (const json& merge : document["model"]["merges"])
    merges.push_back(merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>());
  return merges;
}

std::string held_back() {
  return read_text(data_directory + "default/heldback.txt");
}

/// The ids must go up from 0: special tokens, bytes in the order of their characters, merges.
void expect_ids_in_order(const BpeResult& result, const Texts& special) {
  const json vocab = parse_json(result.tokenizer_json, "trained")["model"]["vocab"];
  const Texts merges = merges_of(result);
  EXPECT_EQ(result.merges, std::ssize(merges));
  EXPECT_EQ(result.vocab_size, std::ssize(special) + 256 + result.merges);
  EXPECT_EQ(std::ssize(vocab), result.vocab_size);
  EXPECT_EQ(tokenizer_of(result).vocab_size(), result.vocab_size);
  for (std::size_t i = 0; i < special.size(); ++i) EXPECT_EQ(vocab[special[i]], i);
  EXPECT_EQ(vocab["!"], special.size());
  EXPECT_EQ(vocab["~"], special.size() + 93);
  EXPECT_EQ(vocab["Ā"], special.size() + 188);  // byte 0
  EXPECT_EQ(vocab["Ġ"], special.size() + 220);  // the space
  for (std::size_t i = 0; i < merges.size(); ++i) {
    std::string token = merges[i];
    token.erase(token.find(' '), 1);
    ASSERT_EQ(vocab[token], special.size() + 256 + i) << merges[i];
  }
}

TEST(BpeTrainer, LearnsWhatTheTokenizersLibraryLearns) {
  const std::string file = data_directory + "tokenizer/merges.json";
  const json cases = parse_json(read_text(file), file);
  ASSERT_GT(cases.size(), 10u);
  for (const json& one : cases) {
    const std::string text = one.contains("file") ? read_text(data_directory + one["file"].get<std::string>())
                                                  : one["text"].get<std::string>();
    const BpeResult result = trained(text, one["vocab_size"], one["special_tokens"]);
    EXPECT_EQ(merges_of(result), one["merges"].get<Texts>()) << text.substr(0, 80);
    expect_ids_in_order(result, one["special_tokens"]);
  }
}

/// What a text of lower-case words and single spaces teaches, found the slow way: before each merge all words
/// are encoded anew and all pairs counted anew.
class SlowLearner {
 public:
  explicit SlowLearner(const std::string& text) {
    for (const char letter : text) {
      if (letter == ' ' || words_.empty()) words_.emplace_back();
      words_.back().push_back(letter == ' ' ? "Ġ" : std::string(1, letter));
    }
    for (char letter = 'a'; letter <= 'z'; ++letter) ids_[std::string(1, letter)] = letter - '!';
    ids_["Ġ"] = 220;
  }

  Texts learn(std::size_t most, int min_count) {
    Texts merges;
    while (merges.size() < most) {
      std::map<std::pair<int, int>, int> counts;  // by ids
      for (const Texts& word : words_) {
        const Texts tokens = encoded(word);
        for (std::size_t i = 0; i + 1 < tokens.size(); ++i) ++counts[{ids_[tokens[i]], ids_[tokens[i + 1]]}];
      }
      auto best = counts.end();
      for (auto pair = counts.begin(); pair != counts.end(); ++pair)
        if (best == counts.end() || pair->second > best->second) best = pair;
      if (best == counts.end() || best->second < min_count) break;
      const std::string left = text_of(best->first.first);
      const std::string right = text_of(best->first.second);
      ids_.emplace(left + right, 256 + static_cast<int>(merges.size()));
      merges_.push_back({left, right});
      merges.push_back(left + " " + right);
    }
    return merges;
  }

 private:
  std::string text_of(int id) const {
    for (const auto& [text, known] : ids_)
      if (known == id) return text;
    return "?";
  }

  Texts encoded(Texts tokens) const {
    for (const auto& [left, right] : merges_) {
      Texts next;
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const bool joins = i + 1 < tokens.size() && tokens[i] == left && tokens[i + 1] == right;
        next.push_back(joins ? left + right : tokens[i]);
        if (joins) ++i;
      }
      tokens = std::move(next);
    }
    return tokens;
  }

  std::vector<Texts> words_;
  std::map<std::string, int> ids_;
  std::vector<std::pair<std::string, std::string>> merges_;
};

TEST(BpeTrainer, LearnsWhatCountingAnewLearns) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    const auto letters = 1 + random() % 4;
    const auto length = 1 + random() % 200;
    std::string text;
    for (std::size_t i = 0; i < length; ++i) {
      const bool space = random() % 6 == 0 && !text.empty() && text.back() != ' ' && i + 1 < length;
      text.push_back(space ? ' ' : static_cast<char>('a' + random() % letters));
    }
    const std::size_t most = 1 + random() % 40;
    const int min_count = 1 + static_cast<int>(random() % 3);
    const BpeResult result = trained(text, 256 + static_cast<std::int64_t>(most), {}, min_count);
    EXPECT_EQ(merges_of(result), SlowLearner(text).learn(most, min_count)) << text;
  }
}

TEST(BpeTrainer, WritesTheFileThatTheLibraryWrites) {
  const std::string file = read_text(data_directory + "tokenizer/learned.json");
  EXPECT_TRUE(trained(held_back(), 300).tokenizer_json == file);
}

TEST(BpeTrainer, TheSameTextGivesTheSameBytes) {
  const std::string text = held_back();
  EXPECT_EQ(trained(text, 700).tokenizer_json, trained(std::string(text), 700).tokenizer_json);
  EXPECT_NE(trained(text, 700).tokenizer_json, trained(text.substr(0, text.size() / 2), 700).tokenizer_json);
}

TEST(BpeTrainer, TokensDecodeToWhatTheyEncoded) {
  const Tokenizer tokenizer = tokenizer_of(trained(held_back() + "naïve 😀😀 你好 ½", 600));
  std::string planes;  // characters of every plane, so every byte that UTF-8 knows
  for (char32_t code = 0; code < 0x110000; code += code < 0x3000 ? 1 : 97)
    if (code < 0xD800 || code > 0xDFFF) utf8_append(planes, code);
  const Texts texts = {"",
                       " ",
                       "In the beginning God created",
                       "don't\r\n\r\n\t x[1234567] = 3.14;",
                       "Größe naïver Cafés",
                       "👩‍👩‍👧 😀😃",
                       "你好，世界。カタカナ",
                       std::string("\0\x01\x7F", 3),
                       planes};
  for (const std::string& text : texts) {
    const Ids ids = tokenizer.encode(text);
    EXPECT_EQ(tokenizer.decode(ids, false), text);
    EXPECT_EQ(tokenizer.decode(ids, true), text);
  }
  EXPECT_EQ(tokenizer.encode(" the").size(), 1u);
  EXPECT_LT(tokenizer.encode(held_back()).size(), held_back().size() / 2);
}

TEST(BpeTrainer, BytesThatAreNotUtf8AreTokensButNoText) {
  const Tokenizer tokenizer = tokenizer_of(trained("any text", 300));
  EXPECT_THROW(tokenizer.encode("a\xFF"), Error);
  EXPECT_EQ(tokenizer.decode(Ids{tokenizer.id_of("ÿ").value()}), "\xEF\xBF\xBD");
  EXPECT_EQ(tokenizer.decode(Ids{tokenizer.id_of("Ã").value(), tokenizer.id_of("©").value()}), "é");
}

TEST(BpeTrainer, SaysHowFarTheTextReached) {
  const BpeResult small = trained("ab ab", 5000);
  EXPECT_EQ(small.vocab_size, 258 + 2);
  EXPECT_EQ(merges_of(small), (Texts{"a b", "Ġ ab"}));
  expect_ids_in_order(small, begin_and_end);
  EXPECT_EQ(merges_of(trained("ab ab", 5000, begin_and_end, 2)), Texts{"a b"});
  EXPECT_EQ(merges_of(trained("ab ab", 5000, begin_and_end, 3)), Texts{});

  const BpeResult none = trained("a", 258);
  EXPECT_EQ(none.vocab_size, 258);
  EXPECT_EQ(tokenizer_of(none).encode("ab<|end|>"), (Ids{2 + 'a' - '!', 2 + 'b' - '!', 1}));
  EXPECT_EQ(trained("ab", 256, {}).merges, 0);
}

TEST(BpeTrainer, LearnsNothingFromSpecialTokens) {
  // A text with special tokens between its documents teaches what the documents teach, but no word crosses
  // such a token.
  EXPECT_EQ(merges_of(trained("one two<|end|>one two<|end|>", 400)),
            merges_of(trained("one two\none two", 400)));
  EXPECT_EQ(merges_of(trained("x<|end|>y", 400)), Texts{});
  EXPECT_EQ(merges_of(trained("ab<|end|>", 400, {})), (Texts{"< |", "a b", "e n", "| >", "en d"}));
}

TEST(BpeTrainer, DoesNotMakeASpecialTokenOfText) {
  // In a vocabulary "Ġab" is how " ab" is spelled; the special token of that text is another one.
  const BpeResult result = trained(" ab ab ab abc", 400, {"Ġab"});
  EXPECT_EQ(merges_of(result), (Texts{"a b", "ab c", "Ġ abc"}));
  const Tokenizer tokenizer = tokenizer_of(result);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(" ab ab")), " ab ab");
  EXPECT_EQ(tokenizer.encode("Ġab"), Ids{0});
}

TEST(BpeTrainer, LongTextsAreCutWhereWordsEnd) {
  // Texts are cut into words in chunks of some 2^20 bytes. Around there lies a word that occurs once, and is
  // a token in the end only if it was counted whole.
  std::string lines;
  while (lines.size() < 1 << 20) lines += std::string(200, 'q') + "\n1";
  for (const std::string& word : {std::string(64, '\n'), " " + std::string(63, 'z'), std::string(64, '!')}) {
    for (const std::size_t before : {1u, 40u, 65u}) {
      const std::string text = lines.substr(0, (1 << 20) - before - 1) + "1" + word + " end\nof it";
      const Tokenizer tokenizer = tokenizer_of(trained(text, 2000));
      EXPECT_EQ(tokenizer.encode("1" + word + " end").size(), 3u) << before;
    }
  }
  // Ten times a text: ten times its counts.
  std::string ten;
  const std::string once = held_back();
  ASSERT_EQ(once.back(), '\n');
  for (int i = 0; i < 10; ++i) ten += once;
  EXPECT_EQ(trained(ten, 10000, begin_and_end, 20).tokenizer_json,
            trained(once, 10000, begin_and_end, 2).tokenizer_json);
}

TEST(BpeTrainer, LongWordsTakeLittleTime) {
  const auto start = std::chrono::steady_clock::now();
  std::mt19937 random(5);
  std::string letters(100'000, 'a');
  EXPECT_EQ(trained(letters, 1000).merges, 16 + 5);  // 2, 4, ... 2^16; 100000 has 6 bits
  for (char& letter : letters) letter = static_cast<char>('a' + random() % 26);
  EXPECT_EQ(trained(letters, 5000).merges, 5000 - 258);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

std::string message(std::string_view text, std::int64_t vocab_size, const Texts& special,
                    std::int64_t min_count = 1) {
  try {
    trained(text, vocab_size, special, min_count);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(BpeTrainer, RefusesWhatItCannotLearn) {
  EXPECT_EQ(message("text", 257, begin_and_end),
            "vocab_size: found 257, expected 258 (256 bytes and 2 special tokens) to 16777216");
  EXPECT_EQ(message("text", -1, {}),
            "vocab_size: found -1, expected 256 (256 bytes and 0 special tokens) to 16777216");
  EXPECT_EQ(message("text", 16777217, {}),
            "vocab_size: found 16777217, expected 256 (256 bytes and 0 special tokens) to 16777216");
  EXPECT_EQ(message("text", 300, {}, 0), "min_count: found 0, expected 1 or more");
  EXPECT_EQ(message("", 300, {}), "the text to train on has no words: 0 bytes");
  EXPECT_EQ(message("<|end|><|end|>", 300, begin_and_end), "the text to train on has no words: 14 bytes");
  EXPECT_EQ(message("ab\xC3", 300, {}), "the text to train on is not UTF-8: byte 2 of 3 is 0xC3");
  EXPECT_EQ(message("text", 300, {"<s>", ""}),
            "special_tokens[1]: found \"\", expected a text that isn't empty");
  EXPECT_EQ(message("text", 300, {"<s>", "<t>", "<s>"}),
            "special_tokens[2]: found \"<s>\", expected each token once");
  EXPECT_EQ(message("text", 300, {"Ġ"}),
            "special_tokens[0]: found \"\\u0120\", expected more than the character that stands for a byte");
  EXPECT_NE(message("text", 300, {"<\xFF>"}).find("expected UTF-8"), std::string::npos);
}

}  // namespace
}  // namespace mla
