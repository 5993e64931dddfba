// 3.10.1-2: waves instead of bits: neighbours are equally far apart, and a shift is a rotation.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/explain/topics.h"
#include "apps/explain/vectors.h"
#include "mla/position/additive.h"

namespace mla::app {
namespace {

constexpr std::int64_t dim = 64;

std::vector<float> encoded(std::int64_t position) {
  std::vector<float> out(dim);
  sinusoidal_position(position, dim, out.data());
  return out;
}

LineChart waves() {
  LineChart chart{"Values of the encoding", "position p", "value", {}, false, -1, 1};
  for (const std::int64_t value : {0, 12, 24}) {
    chart.series.push_back({fmt::format("value {}", value), {}});
    for (std::int64_t p = 0; p < 64; ++p)
      chart.series.back().points.push_back({static_cast<double>(p), encoded(p)[value]});
  }
  return chart;
}

HeatMap all_sines() {
  constexpr std::int64_t pairs = dim / 2, shown = 128;
  HeatMap map{
      "The sines of all pairs, as the bits were drawn", "position", "pair", {}, {}, pairs, shown, {}, -1, 1};
  map.values.resize(pairs * shown);
  for (std::int64_t p = 0; p < shown; ++p) {
    const std::vector<float> values = encoded(p);
    for (std::int64_t i = 0; i < pairs; ++i) map.values[i * shown + p] = values[2 * i];
  }
  return map;
}

/// The encoding of `position` with each pair turned by the angles of `shift`: by the library's rotation of
/// queries and keys, whose frequencies are the same. It turns (cos, sin), so the pairs are swapped around it.
std::vector<float> shifted(const Rotary& rotary, std::int64_t position, std::int64_t shift) {
  const auto swap_pairs = [](std::vector<float> x) {
    for (std::size_t i = 0; i < x.size(); i += 2) std::swap(x[i], x[i + 1]);
    return x;
  };
  return swap_pairs(turned(rotary, swap_pairs(encoded(position)), shift));
}

}  // namespace

Page tell_sinusoidal(Explained& with) {
  Page page;
  page.say(
      "Bits jump because they know only 0 and 1. Waves do what bits do, each pair of values at its own rate, "
      "from fast to slow, but smoothly. Pair i of the d values is");
  page.formula("(sin(p ω_i), cos(p ω_i))");
  page.formula("ω_i = 10000^(-2i/d)");
  page.picture({waves(), "Of 64 values: the sines of pairs 0, 6 and 12."});
  page.picture({all_sines(), "Rows further down are slower, as with bits.", true});

  double least = INFINITY, most = 0;
  for (std::int64_t p = 0; p < 1000; ++p) {
    const double step = distance(encoded(p), encoded(p + 1));
    least = std::min(least, step), most = std::max(most, step);
  }
  page.check("A step is a step: all neighbours are equally far apart.", most - least < 1e-5,
             fmt::format("From each of positions 0 to 999 to the next: {:.6f} to {:.6f}.", least, most));

  constexpr std::int64_t shift = 10;
  page.say(
      "And moving on by k tokens is the same operation wherever one starts: turn pair i by the angle k ω_i. "
      "R_k below is the rotation that this library uses on queries and keys.");
  page.formula("encoding(p + k) = R_k encoding(p)");
  RopeSpec spec;
  spec.dim = dim;
  const Rotary rotary(spec, 4096);
  double off = 0;
  Table table{{"from p", "to p + 10", "R_10 encoding(p) and encoding(p + 10) differ by"}, {}};
  for (std::int64_t p = 0; p <= 4000; ++p) {
    const std::vector<float> moved = shifted(rotary, p, with.is_broken() ? shift - 1 : shift);
    const double here = largest_difference(moved, encoded(p + shift));
    off = std::max(off, here);
    if (p == 0 || p == 4000)
      table.rows.push_back({fmt::format("{}", p), fmt::format("{}", p + shift), fmt::format("{:.1e}", here)});
  }
  page.table(std::move(table));
  page.check("A shift of the position is a rotation that doesn't depend on the position.", off <= 1e-6,
             fmt::format(
                 "Over p = 0 to 4000 at most {:.1e} off. Values are f32 (rounded by up to 3e-08), and so are "
                 "the angles of R_10 (by up to 5e-07).",
                 off));
  page.numbers = {
      {"neighbours_least", least}, {"neighbours_most", most}, {"shift", shift}, {"shift_off", off}};
  page.code = {{"mla/position/additive.cpp", "sinusoidal_position"}, {"mla/position/rotary.cpp", "rotate"}};
  return page;
}

}  // namespace mla::app
