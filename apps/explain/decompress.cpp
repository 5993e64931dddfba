// 3.4.3: attending to one cache by rebuilding keys and values from it, and without.
#include <fmt/format.h>

#include <algorithm>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/core/clock.h"
#include "mla/core/parallel.h"

namespace mla::app {
namespace {

/// Both forms, over the first rows of one cache.
struct Point {
  std::int64_t length;
  double difference = 0, size = 0;              ///< of the outputs, all heads
  double explicit_time = 0, absorbed_time = 0;  ///< microseconds, the least of several
};

/// The sentence's rows of its layer, in f32.
KvCache cache_of(const Sentence& s) {
  constexpr std::int64_t page_rows = 64;
  KvCache cache(std::make_shared<PagePool>(
      RowLayout::latent(s.shape.kv_lora_rank, s.shape.qk_rope_head_dim, DType::f32), 1, page_rows,
      1 + s.size() / page_rows));
  cache.extend(s.size());
  for (std::int64_t t = 0; t < s.size(); ++t) cache.write(0, t, s.row(t));
  return cache;
}

/// The token at the cache's end attends; its output [n_h d_v].
std::vector<float> outputs(const Sentence& s, const KvCache& cache, std::int64_t token, MlaForm form,
                           MlaScratch& scratch, double& least) {
  const std::int64_t width = s.shape.num_heads * s.shape.qk_head_dim();
  std::vector<float> queries(s.query(token, 0), s.query(token, 0) + width);
  std::vector<float> values(s.shape.num_heads * s.shape.v_head_dim);
  MlaCall call;
  call.form = form;
  least = 1e9;
  double spent = 0;
  for (int round = 0; round < 3 || (round < 100 && spent < 0.1); ++round) {
    const double begin = seconds_now();
    mla_attend(s.shape, *s.weights, call, {queries.data(), 1, width}, cache, scratch,
               {values.data(), 1, static_cast<std::int64_t>(values.size())});
    const double took = seconds_now() - begin;
    least = std::min(least, 1e6 * took);
    spent += took;
  }
  return values;
}

/// With `broken`, the absorbed form misses the newest row.
std::vector<Point> measure(const Sentence& s, bool broken) {
  KvCache cache = cache_of(s);
  MlaScratch scratch;
  std::vector<Point> points;
  for (std::int64_t length = s.size() / 100 * 100; length >= 16; length /= 2) {
    cache.truncate(length);
    Point point{length};
    const std::vector<float> made =
        outputs(s, cache, length - 1, MlaForm::decompress, scratch, point.explicit_time);
    if (broken) cache.truncate(length - 1);
    const std::vector<float> kept =
        outputs(s, cache, length - 1, MlaForm::absorb, scratch, point.absorbed_time);
    point.difference = largest_difference(made, kept);
    point.size = largest_size(made);
    points.insert(points.begin(), point);
  }
  return points;
}

/// The usual text again and again, as often as the model's context has room for it.
Sentence read_long(Explained& with) {
  const auto room = static_cast<std::size_t>(with.model().config().max_context);
  std::string text = usual_text, more = text;
  while (with.tokenizer().encode(more).size() <= room) {
    text = more;
    more += std::string(" ") + usual_text;
  }
  return read_sentence(with, text);
}

}  // namespace

Page tell_decompress(Explained& with) {
  Page page;
  const Sentence s = read_long(with);
  const MlaShape& m = s.shape;
  const int usual = threads();
  set_threads(1);  // steps this short would wait for each other's threads on a busy machine
  const std::vector<Point> points = measure(s, with.is_broken());
  set_threads(usual);
  page.say(
      "The cache holds latents, attention wants keys and values. The direct way is to rebuild them: for each "
      "cached token and head k = W_UK c and v = W_UV c, then attention as in MHA (the explicit form), at "
      "every step anew, since what is rebuilt is not kept. The absorbed form moves W_UK into the query and "
      "W_UV behind the sum, and reads the latents as they are.");
  page.say(
      fmt::format("The same cache and query in both forms: the embedded model's last layer ({} heads, latent "
                  "{}) with the first tokens of a text of {}. Times are of the attention alone, on one "
                  "thread:",
                  m.num_heads, m.kv_lora_rank, s.size()));
  Table table{{"cached", "explicit", "absorbed", "ratio", "outputs differ by"}, {}};
  LineChart chart{"One new token, one layer",
                  "cached tokens",
                  "µs",
                  {{"explicit", {}}, {"absorbed", {}}},
                  false,
                  0.0,
                  {}};
  double worst = 0;
  for (const Point& p : points) {
    table.rows.push_back({grouped(p.length), fmt::format("{:.0f} µs", p.explicit_time),
                          fmt::format("{:.0f} µs", p.absorbed_time),
                          fmt::format("{:.1f}", p.explicit_time / p.absorbed_time),
                          fmt::format("{:.0e}", p.difference)});
    const auto x = static_cast<double>(p.length);
    chart.series[0].points.push_back({x, p.explicit_time});
    chart.series[1].points.push_back({x, p.absorbed_time});
    worst = std::max(worst, p.difference / p.size);
    page.numbers["points"].push_back({{"cached", p.length},
                                      {"explicit_microseconds", p.explicit_time},
                                      {"absorbed_microseconds", p.absorbed_time},
                                      {"difference", p.difference}});
  }
  page.table(std::move(table));
  page.picture(
      {std::move(chart), "Rebuilding grows with every cached token, and so with every step.", false});
  page.check("Both forms find the same in the same cache.", worst <= 1e-5,
             fmt::format("Outputs of all heads and lengths differ by {} of the largest value.", tiny(worst)));
  const Point& last = points.back();
  page.check("Rebuilding takes longer the longer the conversation, and longer than absorbing.",
             last.explicit_time > points.front().explicit_time && last.explicit_time > last.absorbed_time,
             fmt::format("With {} cached tokens {:.1f} times as long as absorbing.", grouped(last.length),
                         last.explicit_time / last.absorbed_time));
  page.numbers["difference"] = worst;
  page.code = {{"mla/attention/mla.cpp", "attend_decompressed"},
               {"mla/attention/mla.cpp", "attend_absorbed"}};
  return page;
}

}  // namespace mla::app
