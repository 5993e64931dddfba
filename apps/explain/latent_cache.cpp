// 3.4.2: what a conversation's pages hold before and after a token.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "mla/model/census.h"
#include "mla/runtime/session.h"

namespace mla::app {
namespace {

/// Every byte of the pages in use, page behind page.
std::vector<std::byte> page_bytes(const KvCache& cache) {
  const KvView view = cache.view(0);
  std::vector<std::byte> all;
  for (std::int64_t p = 0; p < cache.pages(); ++p)
    all.insert(all.end(), view.pages[p], view.pages[p] + cache.pool().page_bytes());
  return all;
}

/// What one token did to the pages.
struct Change {
  std::int64_t length = 0, pages = 0, held = 0;  ///< afterwards; bytes held
  std::int64_t rows = 0;                         ///< slots whose bytes changed, in all layers
};

/// Feeds `ids` to the conversation and compares the pages' bytes. Of a page that is new, what isn't zero has
/// changed.
Change feed(Session& session, std::span<const std::int32_t> ids) {
  std::vector<std::byte> before = page_bytes(session.cache());
  session.append(ids);
  const std::vector<std::byte> after = page_bytes(session.cache());
  before.resize(after.size());
  const PagePool& pool = session.cache().pool();
  Change change{session.length(), pool.pages_in_use(), pool.bytes_in_use(), 0};
  const std::int64_t row = pool.layout().bytes();
  for (std::int64_t at = 0; at < static_cast<std::int64_t>(after.size()); at += row)
    change.rows += std::memcmp(before.data() + at, after.data() + at, row) != 0;
  return change;
}

/// How large the latents' numbers are, tokens by latent values.
HeatMap latents_of(const Sentence& s) {
  HeatMap map;
  map.title = "The latents of a sentence, by size";
  map.x_label = "place in the latent";
  map.y_label = "tokens";
  map.y_names = s.tokens;
  map.rows = s.size(), map.cols = s.shape.kv_lora_rank;
  for (std::int64_t t = 0; t < s.size(); ++t) {
    for (std::int64_t i = 0; i < map.cols; ++i) map.values.push_back(std::abs(s.row(t)[i]));
  }
  std::vector<double> sorted = map.values;
  std::ranges::sort(sorted);
  map.high = sorted[sorted.size() * 49 / 50];  // a few large ones would leave all others pale
  return map;
}

Slider length_slider(const ModelConfig& c) {
  const CacheCensus census = count_cache(c);
  const std::vector<std::pair<std::string, std::int64_t>> all = {
      {"MHA", 2 * census.mha},
      {fmt::format("GQA of {}", census.gqa_groups), 2 * census.gqa},
      {"MQA", 2 * census.mqa},
      {"MLA", 2 * census.mla}};
  Slider slider;
  slider.id = "length";
  slider.label = "Tokens of a conversation with DeepSeek-V3";
  slider.low = 10, slider.high = 17, slider.step = 0.25, slider.start = 15;
  slider.shown = "Math.round(2 ** x).toLocaleString('en')";
  slider.stops.heads = {"tokens"};
  for (const auto& one : all) {
    slider.data.push_back({{"name", one.first}, {"bytes", one.second}});
    slider.stops.heads.push_back(one.first);
  }
  // The bars follow the largest, and the caches' ratios never change: this one shows that they all grow.
  slider.data.push_back({{"name", "(memory of an accelerator with 80 GB)"}, {"always", 80e9}});
  slider.script =
      "const text = v => v < 2 ** 30 ? (v / 2 ** 20).toPrecision(3) + ' MiB' : (v / 2 ** 30).toPrecision(3) "
      "+ "
      "' GiB'; "
      "return data.map(d => { const value = d.always || d.bytes * 2 ** x; return {name: d.name, value, text: "
      "text(value)}; });";
  for (const std::int64_t tokens : {1024, 32768, 131072}) {
    std::vector<std::string> row = {grouped(tokens)};
    for (const auto& one : all) row.push_back(in_bytes(static_cast<double>(tokens * one.second)));
    slider.stops.rows.push_back(std::move(row));
  }
  return slider;
}

}  // namespace

Page tell_latent_cache(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const ModelConfig& c = with.model().config();
  SessionOptions options;
  options.cache_type = DType::bf16;
  options.page_rows = s.size() + 1;  // so that the second token below needs a page of its own
  Session session(with.model(), options);
  session.append(s.ids);
  const PagePool& pool = session.cache().pool();
  const std::int64_t row = pool.layout().bytes(), held = pool.bytes_in_use();

  page.say(fmt::format(
      "A token leaves one row per layer: the latent c_kv ({} numbers) and the rotated key ({}), together {} "
      "bytes in bf16. Rows lie in pages; a page here holds {} tokens of all {} layers. The embedded model "
      "has read \"{}\"; now two more tokens, and after each the pages' bytes are compared with those before.",
      s.shape.kv_lora_rank, s.shape.qk_rope_head_dim, row, options.page_rows, c.num_layers, usual_text));
  const std::span<const std::int32_t> ids(s.ids);
  const Change one = feed(session, ids.first(with.is_broken() ? 2 : 1)), two = feed(session, ids.first(1));
  Table table{{"tokens", "pages", "bytes held", "rows that changed", "their bytes"}, {}};
  table.rows.push_back({grouped(s.size()), "1", grouped(held), "", ""});
  for (const Change& now : {one, two})
    table.rows.push_back({grouped(now.length), grouped(now.pages), grouped(now.held), grouped(now.rows),
                          grouped(now.rows * row)});
  page.table(std::move(table));
  page.check(
      "A token changes one row in each layer and no other byte of the cache.",
      one.rows == c.num_layers && two.rows == c.num_layers && two.held == 2 * held &&
          row == 2 * s.shape.latent_width(),
      fmt::format("{} and {} rows changed, of {} layers; keys and values of all heads would be {} bytes "
                  "a token, these are {}.",
                  one.rows, two.rows, c.num_layers, grouped(2 * count_cache(c).mha),
                  grouped(c.num_layers * row)));
  page.picture(
      {latents_of(s),
       "A row for each token, as it lies in the last layer's cache. A column that is dark throughout is "
       "large for every token; what differs tells tokens apart.",
       false});
  page.blocks.push_back(length_slider(published("v3")));
  const auto numbers = [](const Change& now) {
    return nlohmann::ordered_json{
        {"tokens", now.length}, {"pages", now.pages}, {"bytes_held", now.held}, {"rows_changed", now.rows}};
  };
  page.numbers = {{"row_bytes", row}, {"after_one", numbers(one)}, {"after_two", numbers(two)}};
  page.code = {{"mla/cache/kv_cache.h", "KvCache"},
               {"mla/cache/page_pool.h", "PagePool"},
               {"mla/cache/row_layout.h", "RowLayout"}};
  return page;
}

}  // namespace mla::app
