// 3.9.1-3: the bits of the position instead: bounded, each at its own rate, but neighbours jump.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/explain/topics.h"
#include "apps/explain/vectors.h"
#include "mla/position/additive.h"

namespace mla::app {
namespace {

constexpr std::int64_t bits = 6, positions = 64;  // as many as these bits tell apart

std::vector<float> encoded(std::int64_t position) {
  std::vector<float> out(bits);
  binary_position(position, bits, out.data());
  return out;
}

HeatMap pattern() {
  constexpr std::int64_t shown = 32, used = 5;  // the last bit is 0 up to here
  HeatMap map{"Positions 0 to 31 in bits", "position", "", {}, {}, used, shown, {}, 0, 1};
  for (std::int64_t i = 0; i < used; ++i) {
    map.y_names.push_back(fmt::format("bit {}", i));
    for (std::int64_t p = 0; p < shown; ++p) map.values.push_back(encoded(p)[i]);
  }
  return map;
}

/// How often each bit changes from one position to the next, the last position being followed by the first.
std::vector<std::int64_t> count_flips(std::int64_t step) {
  std::vector<std::int64_t> flips(bits);
  for (std::int64_t p = 0; p < positions; ++p) {
    const std::vector<float> here = encoded(p * step), next = encoded((p + 1) % positions * step);
    for (std::int64_t i = 0; i < bits; ++i) flips[i] += here[i] != next[i];
  }
  return flips;
}

LineChart jumps() {
  LineChart chart{
      "From one position to the next", "position p", "distance from p to p + 1", {}, false, 0, {}};
  chart.series = {{"", {}}};
  for (std::int64_t p = 0; p + 1 < positions; ++p)
    chart.series[0].points.push_back({static_cast<double>(p), distance(encoded(p), encoded(p + 1))});
  return chart;
}

}  // namespace

Page tell_binary(Explained& with) {
  Page page;
  page.say(
      "A position written in bits never grows: value i of the encoding is bit i of p, 0 or 1, and d values "
      "tell 2^d positions apart. Bit 0 changes at every token, bit 1 at every second one, and so on, like "
      "the "
      "wheels of a counter:");
  page.picture({pattern(), "Full is 1. Each row repeats half as often as the one above it."});

  const std::vector<std::int64_t> flips = count_flips(with.is_broken() ? 2 : 1);
  Table table{{"bit", "changes in 64 steps", "tokens until it repeats", "repeats per token"}, {}};
  bool halves = true;
  for (std::int64_t i = 0; i < bits; ++i) {
    const double period = 2.0 * positions / static_cast<double>(flips[i]);
    halves = halves && flips[i] == positions >> i;
    table.rows.push_back({fmt::format("{}", i), fmt::format("{}", flips[i]), fmt::format("{:.0f}", period),
                          fmt::format("{:g}", 1 / period)});
  }
  page.table(std::move(table));
  page.check("Each bit oscillates half as fast as the one before it.", halves,
             "Counted over 64 positions, the last one being followed by the first.");
  page.say("But positions that lie side by side need not have encodings that do:");
  LineChart chart = jumps();
  const auto lower = [](const ChartPoint& a, const ChartPoint& b) { return a.y < b.y; };
  const auto [least, most] = std::ranges::minmax(chart.series[0].points, lower);
  const double leap = distance(encoded(31), encoded(32)), far = distance(encoded(0), encoded(32));
  page.picture({std::move(chart), "Every peak is a carry, where many bits change at once."});
  page.check(
      "Neighbours jump: p = 31 and 32 lie further apart than 0 and 32 do.", leap > far && most.y > least.y,
      fmt::format("Distances: 31 to 32 {:.3f}, 0 to 32 {:.3f}; from one position to the next {:.3f} to "
                  "{:.3f}.",
                  leap, far, least.y, most.y));
  page.numbers = {{"changes", flips},
                  {"neighbours_least", least.y},
                  {"neighbours_most", most.y},
                  {"from_31_to_32", leap},
                  {"from_0_to_32", far}};
  page.code = {{"mla/position/additive.cpp", "binary_position"}};
  return page;
}

}  // namespace mla::app
