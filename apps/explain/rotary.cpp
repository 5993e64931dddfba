// RoPE: queries and keys are turned by their positions, so a score knows the distance and nothing else.
#include "mla/position/rotary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"

namespace mla::app {
namespace {

constexpr std::int64_t distance_shown = 7;  // tokens from the key to the query

/// A query and a key of the embedded model before they were turned.
struct Pair {
  std::vector<float> query, key;
};

Pair read_pair(const Sentence& s, const Rotary& rotary) {
  const auto d_r = static_cast<std::size_t>(s.shape.qk_rope_head_dim);
  const std::int64_t last = s.size() - 1, from = last - distance_shown;
  return {turned_back(rotary, {s.query(last, 0) + s.shape.qk_nope_head_dim, d_r}, last),
          turned_back(rotary, {s.row(from) + s.shape.kv_lora_rank, d_r}, from)};
}

double score(const Rotary& rotary, const Pair& pair, std::int64_t m, std::int64_t n) {
  const std::vector<float> q = turned(rotary, pair.query, m), k = turned(rotary, pair.key, n);
  return dot(q.data(), k.data(), std::ssize(q));
}

Slider shift_slider(const Rotary& rotary, const Pair& pair, bool is_interleaved) {
  Slider slider;
  slider.id = "shift";
  slider.label = "Tokens put in front of both";
  slider.low = 0, slider.high = 1000, slider.step = 1, slider.start = 0;
  slider.shown = "x";
  slider.data = {{"query", pair.query},
                 {"key", pair.key},
                 {"frequencies", rotary.frequencies()},
                 {"distance", distance_shown},
                 {"interleaved", is_interleaved}};
  slider.script =
      "const pairs = data.frequencies.length; "
      "const turn = (v, p) => { const out = v.slice(); data.frequencies.forEach((w, i) => { "
      "const a = data.interleaved ? 2 * i : i, b = data.interleaved ? 2 * i + 1 : i + pairs; "
      "const c = Math.cos(p * w), s = Math.sin(p * w); "
      "out[a] = v[a] * c - v[b] * s; out[b] = v[a] * s + v[b] * c; }); return out; }; "
      "const score = (m, n) => turn(data.query, m).reduce((sum, q, i) => sum + q * turn(data.key, n)[i], 0); "
      "const bar = (name, value) => ({name, value, text: value.toFixed(4)}); "
      "return [bar('both moved: R(7 + x) q · R(x) k', score(data.distance + x, x)), "
      "bar('only the query moved: R(7 + x) q · R(0) k', score(data.distance + x, 0)), "
      "bar('not rotated: q · k', score(0, 0))];";
  slider.stops.heads = {"in front", "both moved", "only the query moved", "not rotated"};
  for (const std::int64_t x : {0, 10, 100, 1000}) {
    slider.stops.rows.push_back({fmt::format("{}", x),
                                 fmt::format("{:.4f}", score(rotary, pair, distance_shown + x, x)),
                                 fmt::format("{:.4f}", score(rotary, pair, distance_shown + x, 0)),
                                 fmt::format("{:.4f}", score(rotary, pair, 0, 0))});
  }
  return slider;
}

/// Values 2i and 2i + 1 at i and i + dim/2.
std::vector<float> halves_of(const std::vector<float>& x) {
  std::vector<float> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) out[i / 2 + i % 2 * (x.size() / 2)] = x[i];
  return out;
}

void check_distance(const Rotary& rotary, const Pair& pair, bool broken, Page& page) {
  const double near = score(rotary, pair, distance_shown, 0);
  const double size = norm(pair.query) * norm(pair.key);
  double off = 0, other = 0;
  for (std::int64_t n = 1; n <= 4000; ++n) {
    const std::int64_t m = n + distance_shown + (broken ? 1 : 0);
    off = std::max(off, std::abs(score(rotary, pair, m, n) - near));
    other = std::max(other, std::abs(score(rotary, pair, m + 1, n) - near));
  }
  page.check(
      "A score depends on the distance alone, wherever the two stand.", off < 2e-4 * size,
      fmt::format(
          "Distance 7, key at 1 to 4000: at most {:.1e} from the score at 0, since angles are f32 (off by "
          "2.4e-04 there). Distance 8: up to {:.2f} from it.",
          off, other));
  page.numbers["score_at_7"] = near;
  page.numbers["off_to_4000"] = off;
}

void check_layouts(RopeSpec spec, const Pair& pair, Page& page) {
  spec.layout = RopeLayout::interleaved;
  const Rotary interleaved(spec, 4096);
  spec.layout = RopeLayout::half_split;
  const Rotary half_split(spec, 4096);
  const Pair halves{halves_of(pair.query), halves_of(pair.key)};
  double off = 0;
  for (std::int64_t n = 3000; n < 3100; ++n)
    off = std::max(off, std::abs(score(interleaved, pair, n + 50, n) - score(half_split, halves, n + 50, n)));
  const double mixed = score(half_split, pair, 3050, 3000) - score(interleaved, pair, 3050, 3000);
  page.check("Pairs (2i, 2i + 1) or (i, i + d_r/2): reordered, both give the same scores.",
             off < 1e-5 * norm(pair.query) * norm(pair.key) && std::abs(mixed) > 100 * off,
             fmt::format("Positions 3000 to 3100: {:.1e} apart. In the wrong order: {:.2f} apart.", off,
                         std::abs(mixed)));
  page.numbers["layouts_off"] = off;
}

void tell_yarn(Page& page) {
  RopeSpec spec = published("v3").rope;
  const std::vector<float> stretched = rope_frequencies(spec, spec.original_context);
  const RopeSpec yarn = spec;
  spec.scaling = RopeScaling::none;
  const std::vector<float> plain = rope_frequencies(spec, spec.original_context);
  LineChart chart{"DeepSeek-V3's frequencies", "pair i", "log10 of radians per token", {}, false, {}, {}};
  chart.series = {{"plain", {}}, {"YaRN", {}}};
  std::int64_t kept = 0, divided = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    chart.series[0].points.push_back({static_cast<double>(i), std::log10(plain[i])});
    chart.series[1].points.push_back({static_cast<double>(i), std::log10(stretched[i])});
    const double ratio = static_cast<double>(plain[i]) / stretched[i];
    kept += std::abs(ratio - 1) < 1e-6;
    divided += std::abs(ratio / yarn.factor - 1) < 1e-6;
  }
  page.say(fmt::format(
      "Angles beyond the trained length are new to a model. YaRN divides by {:.0f} the frequencies of pairs "
      "that don't come round in {} tokens, and keeps the fast ones, which tell neighbours apart.",
      yarn.factor, yarn.original_context));
  page.picture(
      {std::move(chart), "Below the ramp both are the same; the slow pairs lie lower by the factor."});
  page.check("YaRN keeps the fast pairs and divides the slow ones by its factor.",
             kept > 0 && divided > 0 && kept + divided < std::ssize(plain),
             fmt::format("Of {} pairs {} are kept, {} divided by {:.0f}, {} lie on a ramp between.",
                         plain.size(), kept, divided, yarn.factor, std::ssize(plain) - kept - divided));
  page.numbers["yarn"] = {{"plain", plain}, {"stretched", stretched}, {"kept", kept}, {"divided", divided}};
}

}  // namespace

Page tell_rotary(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const ModelConfig& config = with.model().config();
  const Rotary rotary(config.rope, config.max_context);
  const Pair pair = read_pair(s, rotary);
  page.say(
      "If a shift is a rotation, a position need not be added to the word at all: turn the query at m by R_m "
      "and the key at n by R_n, pair i of their d_r values by position times ω_i. Lengths stay, and turning "
      "back cancels what they share:");
  page.formula("R_m q · R_n k  =  q · R_(n-m) k");
  page.say(
      fmt::format("The rotated part of the last token's query (head 1) and of the key of \"{}\", {} tokens "
                  "before it, in the embedded model:",
                  s.tokens[s.size() - 1 - distance_shown], distance_shown));
  page.blocks.push_back(shift_slider(rotary, pair, config.rope.layout == RopeLayout::interleaved));
  check_distance(rotary, pair, with.is_broken(), page);
  check_layouts(config.rope, pair, page);
  tell_yarn(page);
  page.code = {{"mla/position/rotary.cpp", "turn"}, {"mla/position/rotary.cpp", "yarn_keep"}};
  return page;
}

}  // namespace mla::app
