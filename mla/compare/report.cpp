#include "mla/compare/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>

#include "mla/chart/bar_chart.h"
#include "mla/chart/heat_map.h"
#include "mla/chart/line_chart.h"
#include "mla/chart/scatter_chart.h"
#include "mla/chart/svg.h"
#include "mla/compare/findings.h"

namespace mla {
namespace {

using chart::escaped;
using nlohmann::ordered_json;

double tokens_per_step(const ComparisonResults& r) {
  return static_cast<double>(r.options.batch * r.options.length);
}

// ---------------------------------------------------------------- results.json

ordered_json model_json(const ComparedModel& m) {
  ordered_json decode = ordered_json::array(), layers = ordered_json::array(), curve = ordered_json::array();
  for (const DecodeSpeed& speed : m.measure.decode)
    decode.push_back({{"context", speed.context}, {"tokens_per_s", speed.tokens_per_second}});
  for (const HeadDiversity& layer : m.measure.layers) {
    layers.push_back({{"map_distance", layer.map_distance},
                      {"key_rank", layer.key_rank},
                      {"map_distances", layer.distances}});
  }
  for (const TrainLogRow& row : m.log) {
    if (row.held_back)
      curve.push_back({{"step", row.step}, {"tokens", row.tokens}, {"bits_per_byte", *row.held_back}});
  }
  return {{"name", m.variant.name},
          {"directory", m.variant.directory},
          {"compares_attention", m.variant.compares_attention},
          {"compares_positions", m.variant.compares_positions},
          {"parameters", m.variant.parameters},
          {"cache_bytes_per_token", m.measure.cache_bytes_per_token},
          {"held_back_bits_per_byte", m.best.bits_per_byte},
          {"best_step", m.best.step},
          {"decode", decode},
          {"map_distance", mean_map_distance(m.measure)},
          {"key_rank", mean_key_rank(m.measure)},
          {"layers", layers},
          {"held_back_curve", curve},
          {"config", ordered_json::parse(m.variant.config)}};
}

// ---------------------------------------------------------------- pictures

bool is_attention(const ComparedModel& m) {
  return m.variant.compares_attention;
}
bool is_position(const ComparedModel& m) {
  return m.variant.compares_positions;
}

/// MHA's name where positions are compared.
std::string rung_name(const ComparedModel& m) {
  return m.variant.directory == "mha" ? "rotary" : m.variant.name.substr(m.variant.name.find(' ') + 1);
}

std::string cache_picture(const ComparisonResults& r) {
  ScatterChart chart{"Held-back loss against cache", "cache bytes per token", "bits per byte", false, {}};
  chart.series.push_back({"", {}});
  for (const ComparedModel& m : r.models) {
    if (is_attention(m))
      chart.series.back().points.push_back(
          {m.measure.cache_bytes_per_token, m.best.bits_per_byte, m.variant.name});
  }
  return scatter_chart_svg(chart);
}

/// Held-back loss over steps, without the first tenth, which would flatten the rest.
template <class Chosen, class Name>
std::string curves_picture(const ComparisonResults& r, const char* title, const Chosen& chosen,
                           const Name& name) {
  LineChart chart{title, "step", "bits per byte, held back", {}};
  for (const ComparedModel& m : r.models) {
    if (!chosen(m)) continue;
    ChartSeries series{name(m), {}};
    for (const TrainLogRow& row : m.log) {
      if (row.held_back && row.step * 10 > r.options.steps)
        series.points.push_back({static_cast<double>(row.step), *row.held_back});
    }
    chart.series.push_back(std::move(series));
  }
  return line_chart_svg(chart);
}

template <class Chosen, class Name, class Value>
std::string bars_picture(const ComparisonResults& r, const std::string& title, const char* label,
                         const Chosen& chosen, const Name& name, const Value& value) {
  BarChart chart{title, label, {}, {}};
  for (const ComparedModel& m : r.models) {
    if (chosen(m)) chart.bars.push_back({name(m), value(m)});
  }
  // The ladder of positions ends on rotation, which is MHA, the first of all.
  if (!chart.bars.empty() && chart.bars.front().name == "rotary")
    std::rotate(chart.bars.begin(), chart.bars.begin() + 1, chart.bars.end());
  return bar_chart_svg(chart);
}

std::string distances_picture(const ComparedModel& m) {
  const std::int64_t heads = static_cast<std::int64_t>(std::sqrt(m.measure.layers.front().distances.size()));
  HeatMap map{m.variant.name, "head", "head", {}, {}, heads, heads, {}, 0, 1};
  map.values.resize(m.measure.layers.front().distances.size());
  for (const HeadDiversity& layer : m.measure.layers) {
    for (std::size_t i = 0; i < map.values.size(); ++i)
      map.values[i] += layer.distances[i] / static_cast<double>(m.measure.layers.size());
  }
  for (std::int64_t h = 0; h < heads; ++h) map.x_names.push_back(fmt::format("{}", h + 1));
  map.y_names = map.x_names;
  return heat_map_svg(map);
}

// ---------------------------------------------------------------- page

constexpr const char* style = R"(
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --quiet: #5a5a5a; --line: #d5d5d5; --good: #0b6b35; --bad: #a3261c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #17191c; --quiet: #a5a5a5; --line: #3a3d42; --good: #6fce95; --bad: #ff9186; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 52rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
figure { margin: 1.5rem 0; } figure svg.mla-chart { width: 100%; max-width: 36rem; height: auto; } figcaption, .quiet { color: var(--quiet); font-size: .9rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); } th:first-child, td:first-child { text-align: left; padding-left: 0; }
.findings { list-style: none; padding: 0; } .findings li { margin: 1rem 0; } .holds { color: var(--good); font-weight: 600; } .fails { color: var(--bad); font-weight: 600; } .open { font-weight: 600; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
)";

/// Adds to a page.
class Page {
 public:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(html_), format, std::forward<Args>(args)...);
  }
  void figure(const std::string& picture, const std::string& caption) {
    add("<figure>{}<figcaption>{}</figcaption></figure>\n", picture, caption);
  }
  const std::string& html() const { return html_; }

 private:
  std::string html_;
};

void add_introduction(const ComparisonResults& r, Page& page) {
  const ComparisonOptions& o = r.options;
  const double tokens = tokens_per_step(r) * static_cast<double>(o.steps);
  page.add(
      "<h1>MHA, GQA, MQA and MLA, trained alike</h1>\n<p>{} small language models, alike in everything but "
      "their attention or their positions, were trained from scratch on the same {:.3g} million tokens of {} "
      "in the same order: {} steps of {} sequences of {} tokens, {:.2g} times through the text. All have "
      "about {:.2f} million parameters (within 2 %: where attention takes fewer, the feed-forward is wider), "
      "{} layers, {} heads of {} and one tokenizer of {} tokens. The last {:.0f} % of the text was held "
      "back; "
      "losses are on that part.</p>\n",
      r.models.size(), tokens / 1e6, escaped(r.text_name), o.steps, o.batch, o.length,
      tokens / static_cast<double>(r.training_tokens),
      static_cast<double>(r.models.front().variant.parameters) / 1e6, o.sizes.num_layers, o.sizes.num_heads,
      o.sizes.head_dim, o.sizes.vocab_size, 100 * o.held_back);
  page.add(
      "<p class=\"quiet\">Made by <code>mla compare</code> on {}, {}; trained in {}. These are models of a "
      "few "
      "million parameters and one text: what they say of each other need not hold for large ones. Chance: "
      "MHA "
      "from another seed (other weights, other order) comes out {:+.4f} bits per byte away, so differences "
      "below {:.4f} are called none.</p>\n",
      escaped(r.date), escaped(r.cpu), name_of(o.compute),
      model_named(r, "mha-another-seed").best.bits_per_byte - model_named(r, "mha").best.bits_per_byte,
      noise_of(r));
}

void add_findings(const ComparisonResults& r, Page& page) {
  page.add("<h2>What the data say to the chapter</h2>\n<ul class=\"findings\">\n");
  for (const Finding& finding : findings_of(r)) {
    page.add("<li><span class=\"{}\">{}</span> {}<br><span class=\"quiet\">{}</span></li>\n",
             finding.verdict == Verdict::holds   ? "holds"
             : finding.verdict == Verdict::fails ? "fails"
                                                 : "open",
             finding.verdict == Verdict::holds   ? "Holds here."
             : finding.verdict == Verdict::fails ? "Does not hold here."
                                                 : "Not decided here: within chance.",
             escaped(finding.claim), escaped(finding.evidence));
  }
  page.add("</ul>\n");
}

void add_table(const ComparisonResults& r, Page& page) {
  page.add(
      "<h2>All figures</h2>\n<div class=\"table\"><table>\n<tr><th>model</th><th>parameters</th><th>cache "
      "bytes/token</th><th>bits/byte</th><th>to MHA</th>");
  for (const DecodeSpeed& speed : r.models.front().measure.decode)
    page.add("<th>tokens/s at {}</th>", speed.context);
  page.add("<th>map distance</th><th>key rank</th></tr>\n");
  const double mha = model_named(r, "mha").best.bits_per_byte;
  for (const ComparedModel& m : r.models) {
    page.add("<tr><td>{}</td><td>{}</td><td>{:.0f}</td><td>{:.4f}</td><td>{:+.4f}</td>",
             escaped(m.variant.name), m.variant.parameters, m.measure.cache_bytes_per_token,
             m.best.bits_per_byte, m.best.bits_per_byte - mha);
    for (const DecodeSpeed& speed : m.measure.decode) page.add("<td>{:.0f}</td>", speed.tokens_per_second);
    page.add("<td>{:.3f}</td><td>{:.1f}</td></tr>\n", mean_map_distance(m.measure), mean_key_rank(m.measure));
  }
  page.add("</table></div>\n");
}

void add_attention(const ComparisonResults& r, Page& page) {
  const auto name = [](const ComparedModel& m) { return m.variant.name; };
  page.add("<h2>Attention: quality for cache</h2>\n");
  page.figure(cache_picture(r),
              "Lower is better, further left is cheaper. The cache is what the pages of a "
              "conversation really hold, in bf16, over all layers.");
  page.figure(curves_picture(r, "Held-back loss", is_attention, name),
              "While training; the first tenth is left out.");
  const std::size_t last = r.models.front().measure.decode.size() - 1;
  page.figure(
      bars_picture(r, fmt::format("Decoding behind {} tokens", r.models.front().measure.decode[last].context),
                   "tokens per second", is_attention, name,
                   [last](const ComparedModel& m) { return m.measure.decode[last].tokens_per_second; }),
      "One conversation, one token at a time. Models this small spend much of a token outside "
      "attention. MLA decodes from its latents.");
}

void add_heads(const ComparisonResults& r, Page& page) {
  const auto name = [](const ComparedModel& m) { return m.variant.name; };
  page.add("<h2>Do the heads stay different?</h2>\n");
  page.figure(
      bars_picture(r, "Distance between the heads' attention maps", "mean Jensen-Shannon distance",
                   is_attention, name, [](const ComparedModel& m) { return mean_map_distance(m.measure); }),
      "For each pair of heads of a layer and each token of held-back text: how far apart the two "
      "distributions over earlier tokens are, as the root of their Jensen-Shannon divergence in bits. "
      "0: all heads look at the same tokens; 1: no two at a common one. Mean over pairs, tokens and "
      "layers.");
  page.figure(bars_picture(r, "Effective rank of the heads' keys", "directions", is_attention, name,
                           [](const ComparedModel& m) { return mean_key_rank(m.measure); }),
              "The keys of all heads of a layer side by side, centred: squared sum of their covariance's "
              "eigenvalues over the sum of the squares. How many directions the keys really use.");
  page.add("<p>Distances between each two heads, mean over layers:</p>\n<div class=\"maps\">\n");
  for (const ComparedModel& m : r.models) {
    if (is_attention(m)) page.add("{}\n", distances_picture(m));
  }
  page.add("</div>\n");
}

void add_positions(const ComparisonResults& r, Page& page) {
  page.add("<h2>Positions: none, integers, bits, waves, rotation</h2>\n");
  page.figure(
      bars_picture(r, "Held-back loss of MHA by position", "bits per byte", is_position, rung_name,
                   [](const ComparedModel& m) { return m.best.bits_per_byte; }),
      "Lower is better. The causal mask alone tells a model without positions something of order. Where "
      "positions are added, the embedding is scaled by the root of its width, or they would drown it.");
  page.figure(curves_picture(r, "Held-back loss by position", is_position, rung_name),
              "While training; the first tenth is left out.");
}

}  // namespace

std::string results_json(const ComparisonResults& r) {
  ordered_json models = ordered_json::array(), findings = ordered_json::array();
  for (const ComparedModel& m : r.models) models.push_back(model_json(m));
  for (const Finding& f : findings_of(r))
    findings.push_back({{"claim", f.claim}, {"verdict", name_of(f.verdict)}, {"evidence", f.evidence}});
  const ComparisonOptions& o = r.options;
  const ordered_json json = {
      {"format", "mla-comparison-results-1"},
      {"date", r.date},
      {"cpu", r.cpu},
      {"text",
       {{"name", r.text_name},
        {"bytes", r.text_bytes},
        {"held_back_bytes", r.held_back_bytes},
        {"training_tokens", r.training_tokens}}},
      {"steps", o.steps},
      {"batch", o.batch},
      {"length", o.length},
      {"learning_rate", o.learning_rate},
      {"seed", o.seed},
      {"dtype", name_of(o.compute)},
      {"noise_bits_per_byte", noise_of(r)},
      {"definitions",
       {{"held_back_bits_per_byte",
         "of the held-back text in windows of `length` tokens, at the best measurement"},
        {"map_distance",
         "mean over pairs of heads, queries and layers of the Jensen-Shannon distance (bits) of attention "
         "maps"},
        {"key_rank",
         "mean over layers of (sum of eigenvalues)^2 / sum of squares, of the covariance of all heads' "
         "keys"}}},
      {"findings", findings},
      {"models", models}};
  return json.dump(1) + "\n";
}

std::string report_html(const ComparisonResults& r) {
  Page page;
  page.add(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><title>MHA, GQA, MQA and MLA, trained "
      "alike</title>\n<style>{}</style></head><body>\n",
      style);
  add_introduction(r, page);
  add_findings(r, page);
  add_attention(r, page);
  add_heads(r, page);
  add_positions(r, page);
  add_table(r, page);
  page.add("</body></html>\n");
  return page.html();
}

}  // namespace mla
