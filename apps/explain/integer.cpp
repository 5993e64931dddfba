// 3.8.1-2: a position added as a plain number drowns the word.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/position/additive.h"

namespace mla::app {
namespace {

/// The words of a sentence, each with one position added.
struct Drowned {
  std::int64_t position = 0;
  double position_norm = 0;  ///< length of what is added
  double to_itself = 0;      ///< cosine of word + position to the word, mean over the words
  double to_others = 0;      ///< cosine of two different words, both with the position added, mean over pairs
};

Drowned add_position(const std::vector<std::vector<float>>& words, std::int64_t position) {
  const auto d = static_cast<std::int64_t>(words.front().size());
  std::vector<float> added(d);
  integer_position(position, d, added.data());
  Drowned at{position, norm(added), 0, 0};
  std::vector<std::vector<float>> sums = words;
  for (std::vector<float>& sum : sums) {
    for (std::int64_t i = 0; i < d; ++i) sum[i] += added[i];
  }
  const auto count = static_cast<double>(words.size());
  for (std::size_t a = 0; a < words.size(); ++a) {
    at.to_itself += cosine(words[a], sums[a]) / count;
    for (std::size_t b = 0; b < a; ++b) at.to_others += cosine(sums[a], sums[b]) / (count * (count - 1) / 2);
  }
  return at;
}

/// Embeddings of the different tokens of the usual text, times √d.
std::vector<std::vector<float>> read_words(Explained& with) {
  const Weight& embedding = with.model().weights().embedding;
  std::vector<std::int32_t> ids = with.tokenizer().encode(usual_text);
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  std::vector<std::vector<float>> words;
  for (const std::int32_t id : ids) {
    words.emplace_back(static_cast<std::size_t>(embedding.cols));
    read_row(embedding, id, words.back().data());
    for (float& x : words.back()) x *= std::sqrt(static_cast<float>(embedding.cols));
  }
  return words;
}

}  // namespace

Page tell_integer(Explained& with) {
  Page page;
  const std::vector<std::vector<float>> words = read_words(with);
  double word_norm = 0;
  for (const std::vector<float>& word : words) word_norm += norm(word) / static_cast<double>(words.size());
  page.say(fmt::format(
      "The plainest way to tell a model that a word stands at position p: add p to each value of its "
      "embedding e. Here are the {} different tokens of \"{}\" in the embedded model, d = {} values each, "
      "times √d as is usual where positions are added: their length is {:.1f} on average.",
      words.size(), usual_text, words.front().size(), word_norm));
  page.formula("e + p (1, 1, ..., 1)");

  LineChart chart{"What is left of the word", "position p", "cosine", {}, true, {}, {}};
  chart.series = {{"word + p to the word itself", {}}, {"two different words, both + p", {}}};
  Table table{{"p", "length of p (1, 1, ..., 1)", "cosine to the word", "of two different words"}, {}};
  Drowned far;
  for (std::int64_t p = 1; p <= 1024; p *= 2) {
    const Drowned at = add_position(words, with.is_broken() ? 0 : p);
    chart.series[0].points.push_back({static_cast<double>(p), at.to_itself});
    chart.series[1].points.push_back({static_cast<double>(p), at.to_others});
    page.numbers["positions"].push_back(
        {{"position", p}, {"to_itself", at.to_itself}, {"to_others", at.to_others}});
    if (p == 1 || p == 8 || p == 64 || p == 1024)
      table.rows.push_back({fmt::format("{}", p), fmt::format("{:.0f}", at.position_norm),
                            fmt::format("{:.4f}", at.to_itself), fmt::format("{:.6f}", at.to_others)});
    far = at;
  }
  const Drowned none = add_position(words, 0);
  page.numbers["embedding_norm"] = word_norm;
  page.picture(
      {std::move(chart),
       fmt::format("Mean over the words and their pairs. Without a position, two different words have "
                   "a cosine of {:.2f}.",
                   none.to_others)});
  page.table(std::move(table));
  page.check("The position drowns the word: far out, the sum no longer points where the word did.",
             std::abs(far.to_itself) < 0.1,
             fmt::format("At p = 1024 the cosine of word + p to the word is {:.4f}.", far.to_itself));
  page.check("And all words look alike there, whatever they mean.",
             far.to_others > 0.999 && none.to_others < 0.5,
             fmt::format("Two different words have a cosine of {:.6f} at p = 1024, and of {:.2f} without it.",
                         far.to_others, none.to_others));
  page.say(
      "Dividing p by the length of the text would bound it, but then one step is a different amount in each "
      "text, and too small to be seen in a long one.");
  page.code = {{"mla/position/additive.cpp", "integer_position"}};
  return page;
}

}  // namespace mla::app
