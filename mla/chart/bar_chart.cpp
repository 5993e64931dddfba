#include "mla/chart/bar_chart.h"

#include <algorithm>

#include "mla/chart/axes.h"

namespace mla {
namespace {

using namespace chart;

constexpr double row = 27, bar_height = 17;
constexpr double most_name = 0.42 * width;  // of the picture's width

/// From where bars begin to the greatest value, and to the least if some are negative.
Range range_of(const BarChart& chart) {
  Range range;
  range.include(chart.y_low.value_or(0));
  for (const Bar& bar : chart.bars) {
    if (!chart.y_low || bar.value > *chart.y_low) range.include(bar.value);
  }
  if (range.low == range.high) range.high += 1;
  return range;
}

std::vector<std::string> numbers_of(const std::vector<Bar>& bars) {
  std::vector<double> values;
  for (const Bar& bar : bars) values.push_back(bar.value);
  const int decimals = decimals_of(values);
  std::vector<std::string> numbers;
  for (const double value : values) numbers.push_back(number(value, decimals));
  return numbers;
}

/// The grid and its ticks, below rows that begin at `top`.
void draw_axis(Svg& svg, const Axis& axis, double left, double length, double top, double bottom) {
  for (const Tick& tick : axis.ticks) {
    const double x = left + axis.place(tick.value) * length;
    svg.line("mla-grid", x, top, x, bottom);
    svg.text(x, bottom + 17, tick.label, Anchor::middle);
  }
}

}  // namespace

std::string bar_chart_svg(const BarChart& chart) {
  for (const Bar& bar : chart.bars) require_drawable(bar.value, fmt::format("bar '{}'", bar.name));
  if (chart.y_low) require_drawable(*chart.y_low, "y_low");
  const std::vector<std::string> numbers = numbers_of(chart.bars);
  double name_width = 0, number_width = 0;
  for (std::size_t i = 0; i < chart.bars.size(); ++i) {
    name_width = std::max(name_width, std::min(most_name, width_of(chart.bars[i].name, text_size)));
    number_width = std::max(number_width, width_of(numbers[i], text_size));
  }
  Svg svg(chart.title);
  const double left = margin + name_width + 10, length = width - margin - number_width - 8 - left;
  const double top = svg.title_end() + 10, bottom = top + row * static_cast<double>(chart.bars.size());
  const Axis axis = horizontal_axis(range_of(chart), false, length);
  draw_axis(svg, axis, left, length, top, bottom);
  const double base = left + axis.place(chart.y_low.value_or(0)) * length;
  for (std::size_t i = 0; i < chart.bars.size(); ++i) {
    const double y = top + row * static_cast<double>(i),
                 end = left + axis.place(chart.bars[i].value) * length;
    const double from = std::min(base, std::max(end, left)), to = std::max(base, end);
    svg.add("<rect class=\"mla-bar\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{}\"/>\n", from,
            y + (row - bar_height) / 2, to - from, bar_height);
    svg.text(left - 10, y + row / 2 + 5, shortened(chart.bars[i].name, most_name, text_size), Anchor::end,
             "mla-name");
    svg.text(to + 6, y + row / 2 + 5, numbers[i], Anchor::start, "mla-value");
  }
  svg.line("mla-axis", base, top, base, bottom);
  svg.text(width - margin, bottom + 37, shortened(chart.y_label, width - 2 * margin), Anchor::end);
  return svg.finish(bottom + 37 + margin);
}

}  // namespace mla
