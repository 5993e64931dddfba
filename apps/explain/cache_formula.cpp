// 3.5.1: the formula of the cache's size, filled in, and the bytes that real pages hold.
#include <fmt/format.h>

#include <cmath>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/published_configs.h"
#include "mla/model/census.h"

namespace mla::app {
namespace {

struct Family {
  std::string name;
  ModelConfig config;
  CacheCensus census;
  std::int64_t live = 0;  ///< bytes of pages that hold one token, in bf16
};

/// Takes pages for one token of such a model and asks the pool what they hold. With `broken`, the rotated key
/// has no room.
std::int64_t live_bytes(const ModelConfig& c, bool broken) {
  const RowLayout row =
      broken ? RowLayout::latent(c.kv_lora_rank, 0, DType::bf16) : row_layout(c, DType::bf16);
  const auto pool = std::make_shared<PagePool>(row, c.num_layers, 1, 1);
  KvCache cache(pool);
  cache.extend(1);
  return pool->bytes_in_use();
}

std::vector<Family> families(Explained& with) {
  std::vector<Family> all;
  const auto add = [&](std::string name, ModelConfig config) {
    const CacheCensus census = count_cache(config);
    const std::int64_t live = live_bytes(config, with.is_broken());
    all.push_back({std::move(name), std::move(config), census, live});
  };
  for (const PublishedConfig& one : published_configs()) {
    ModelConfig config = published(one.name);
    if (config.attention == AttentionKind::latent) add(std::string(one.source), std::move(config));
  }
  add("embedded model", with.model().config());
  return all;
}

Table table_of(const std::vector<Family>& all) {
  Table table{{"model", "layers", "MLA keeps", "MHA would", "ratio", "c_kv only", "page bytes"}, {}};
  for (const Family& f : all)
    table.rows.push_back({f.name, grouped(f.config.num_layers), grouped(f.census.mla), grouped(f.census.mha),
                          fmt::format("{:.1f}", ratio(f.census.mha, f.census.mla)),
                          fmt::format("{:.1f}", ratio(f.census.mha, f.census.latent_only)), grouped(f.live)});
  return table;
}

LineChart growth(const CacheCensus& census) {
  constexpr double most = 131072;
  LineChart chart{"Cache of a conversation with DeepSeek-V3, bf16", "tokens", "GiB", {}, false, 0.0, 40.0};
  const auto add = [&](std::string name, std::int64_t numbers) {
    ChartSeries series{std::move(name), {}};
    for (double tokens = 0; tokens <= most; tokens += most / 32)
      series.points.push_back({tokens, 2 * tokens * static_cast<double>(numbers) / (1 << 30)});
    chart.series.push_back(std::move(series));
  };
  add("MHA", census.mha);
  add(fmt::format("GQA of {}", census.gqa_groups), census.gqa);
  add("MLA", census.mla);
  add("MQA", census.mqa);
  return chart;
}

}  // namespace

Page tell_cache_formula(Explained& with) {
  Page page;
  const std::vector<Family> all = families(with);
  const ModelConfig v3 = published("v3");
  const CacheCensus census = count_cache(v3);
  page.say(
      "What a token keeps in L layers: with MHA a key and a value of each of n_h heads, with MLA the latent, "
      "d_c numbers for all heads together, and a rotated key of d_r that all heads share. DeepSeek-V3:");
  page.formula(
      fmt::format("MHA   L · 2 · n_h · head = {0} · 2 · {1} · {2} = {3}\n"
                  "c_kv  L · d_c            = {0} · {4} = {5}\n"
                  "MLA   L · (d_c + d_r)    = {0} · ({4} + {6}) = {7}",
                  v3.num_layers, v3.num_heads, v3.v_head_dim, grouped(census.mha), v3.kv_lora_rank,
                  grouped(census.latent_only), v3.qk_rope_head_dim, grouped(census.mla)));
  const double with_key = ratio(census.mha, census.mla), without = ratio(census.mha, census.latent_only);
  page.check("The chapter's formula gives 64 times less; with the rotated key, which is kept too, 57 times.",
             std::lround(without) == 64 && std::lround(with_key) == 57,
             fmt::format("{0} / {1} = {2:.1f}, {0} / {3} = {4:.1f}.", grouped(census.mha),
                         grouped(census.latent_only), without, grouped(census.mla), with_key));
  page.say(
      "Every family by the formula, and the bytes of the pages that the library takes for one token in bf16. "
      "Ratios: MHA to MLA, and to its latent alone.");
  page.table(table_of(all));
  bool is_equal = true;
  for (const Family& f : all) {
    is_equal = is_equal && f.live == 2 * f.census.mla;
    page.numbers["families"].push_back({{"name", f.name},
                                        {"mla", f.census.mla},
                                        {"mha", f.census.mha},
                                        {"latent_only", f.census.latent_only},
                                        {"page_bytes", f.live}});
  }
  page.check(
      "Pages hold what the formula with the rotated key says, to the byte.", is_equal,
      fmt::format("{} models, {} bytes a token for DeepSeek-V3.", all.size(), grouped(2 * census.mla)));
  page.picture({growth(census),
                fmt::format("MHA leaves the picture: at 131,072 tokens it would need {}, MLA needs {}.",
                            in_bytes(2.0 * 131072 * static_cast<double>(census.mha)),
                            in_bytes(2.0 * 131072 * static_cast<double>(census.mla))),
                false});
  page.code = {{"mla/model/census.h", "count_cache"}, {"mla/cache/row_layout.h", "latent"}};
  return page;
}

}  // namespace mla::app
