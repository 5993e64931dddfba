#include "mla/chart/axes.h"

#include <algorithm>
#include <cmath>

#include "mla/core/error.h"

namespace mla::chart {
namespace {

constexpr double between = 10;  // two labels side by side
constexpr double legend_row = 21;

/// Whether labels have room over `length`.
bool fit(const Axis& axis, double length) {
  for (std::size_t i = 1; i < axis.ticks.size(); ++i) {
    const Tick &a = axis.ticks[i - 1], &b = axis.ticks[i];
    const double room = (axis.place(b.value) - axis.place(a.value)) * length;
    if (room < (width_of(a.label) + width_of(b.label)) / 2 + between) return false;
  }
  return true;
}

void drop_ticks_outside(Axis& axis) {
  const double slack = 1e-6 * (axis.high - axis.low);
  std::erase_if(axis.ticks, [&](const Tick& tick) {
    return tick.value < axis.low - slack || tick.value > axis.high + slack;
  });
}

/// Ticks at the digits times powers of ten, of which every `every`th counts.
std::vector<Tick> log_ticks(const Axis& axis, const std::vector<int>& digits, int every) {
  std::vector<Tick> ticks;
  const int first = static_cast<int>(std::floor(std::log10(axis.low)));
  const int last = static_cast<int>(std::ceil(std::log10(axis.high)));
  for (int power = first; power <= last; ++power) {
    if (power % every != 0) continue;
    for (const int digit : digits) {
      const double value = digit * std::pow(10, power);
      if (value >= axis.low * (1 - 1e-9) && value <= axis.high * (1 + 1e-9))
        ticks.push_back({value, number(value, std::max(0, -power))});
    }
  }
  return ticks;
}

/// The axis' ticks: on a short range as a linear axis has them, then 1, 2, 5, then 1, 3, then powers of ten.
Axis log_axis(Range range, double length) {
  if (!(range.low <= range.high)) range = {1, 10};
  if (range.high <= range.low * (1 + 1e-9)) range = {range.low / 2, range.high * 2};
  // Room around numbers of any size may leave what a double holds.
  range = {std::max(range.low, 1e-307), std::min(range.high, 1e307)};
  Axis axis{range.low, range.high, true};
  if (range.high < 5 * range.low) {
    for (int wanted = 5; wanted > 0; --wanted) {
      axis.ticks = linear_axis(range, wanted, false).ticks;
      drop_ticks_outside(axis);  // the linear axis of tiny numbers is wider
      if (fit(axis, length)) return axis;
    }
  }
  axis.ticks = log_ticks(axis, {1, 2, 5}, 1);
  if (!fit(axis, length)) axis.ticks = log_ticks(axis, {1, 3}, 1);
  for (int every = 1; !fit(axis, length); ++every) axis.ticks = log_ticks(axis, {1}, every);
  return axis;
}

}  // namespace

void Range::include(double value) {
  low = std::min(low, value);
  high = std::max(high, value);
}

double Axis::place(double value) const {
  if (is_log) return (std::log(value) - std::log(low)) / (std::log(high) - std::log(low));
  return (value - low) / (high - low);
}

Axis linear_axis(Range range, int wanted, bool is_rounded) {
  double low = range.low, high = range.high;
  if (!(low <= high)) low = 0, high = 1;
  const double size = std::max(std::abs(low), std::abs(high));
  if (high - low <= std::max(1e-9 * size, 1e-200)) {
    const double room = size > 1e-200 ? 0.1 * size : 1;
    low -= room;
    high += room;
  }
  const double rough = (high - low) / wanted;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  const double digit = rough / power;
  const double step = (digit < 1.5 ? 1 : digit < 3 ? 2 : digit < 7 ? 5 : 10) * power;
  if (is_rounded) {
    low = std::floor(low / step + 1e-9) * step;
    high = std::ceil(high / step - 1e-9) * step;
  }
  Axis axis{low, high};
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step * 1.0001))));
  const double first = std::ceil(low / step - 1e-9) * step;
  const int ticks = static_cast<int>(std::floor((high - first) / step + 1e-9)) + 1;
  for (int i = 0; i < ticks; ++i) {
    const double value = first + i * step;
    axis.ticks.push_back({value, number(value, decimals)});
  }
  return axis;
}

Axis horizontal_axis(Range range, bool is_log, double length) {
  if (is_log) return log_axis(range, length);
  for (int wanted = 6;; --wanted) {
    Axis axis = linear_axis(range, wanted, false);
    if (wanted == 1 || fit(axis, length)) return axis;
  }
}

Axis vertical_axis(Range range, std::optional<double> low, std::optional<double> high) {
  if (low) require_drawable(*low, "y_low");
  if (high) require_drawable(*high, "y_high");
  if (low && high)
    require(*low < *high, "chart: y_low: found {}, expected less than y_high, {}", *low, *high);
  if (low) range = {*low, std::max(range.high, *low)};
  if (high) range = {std::min(range.low, *high), *high};
  Axis axis = linear_axis(range, 5, true);
  if (low) axis.low = *low;
  if (high) axis.high = *high;
  drop_ticks_outside(axis);
  return axis;
}

Plot::Plot(double top, Range x, bool log_x, Axis y) : top_(top), left_(margin), y_(std::move(y)) {
  for (const Tick& tick : y_.ticks) left_ = std::max(left_, margin + width_of(tick.label) + 8);
  x_ = horizontal_axis(x, log_x, right() - left_);
}

double Plot::draw(Svg& svg, std::string_view x_label, std::string_view y_label) const {
  constexpr double room = width - 2 * margin;
  svg.text(margin, top_ - 15, shortened(y_label, room));
  for (const Tick& tick : y_.ticks) {
    const double y = at_y(tick.value);
    svg.line("mla-grid", left_, y, right(), y);
    svg.text(left_ - 8, y + 4.5, tick.label, Anchor::end);
  }
  for (const Tick& tick : x_.ticks) {
    const double x = at_x(tick.value), half = width_of(tick.label) / 2;
    svg.line("mla-axis", x, bottom(), x, bottom() + 5);
    svg.text(std::min(x, width - 4 - half), bottom() + 20, tick.label, Anchor::middle);
  }
  svg.line("mla-axis", left_, bottom(), right(), bottom());
  svg.text(right(), bottom() + 41, shortened(x_label, room), Anchor::end);
  return bottom() + 41 + margin;
}

std::string series_classes(std::size_t index, LegendMark mark) {
  const bool is_again = index >= colours;
  const std::string_view form = mark == LegendMark::line ? (is_again ? "mla-line mla-dash" : "mla-line")
                                                         : (is_again ? "mla-ring" : "mla-disc");
  return fmt::format("{} mla-s{}", form, index % colours);
}

double draw_legend(Svg& svg, const std::vector<std::string>& names, LegendMark mark) {
  const double mark_width = mark == LegendMark::line ? 22 : 10;
  double x = margin, y = svg.title_end();
  bool is_empty = true;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i].empty()) continue;
    const std::string name = shortened(names[i], width - 2 * margin - mark_width - 8, text_size);
    const double entry = mark_width + 8 + width_of(name, text_size);
    if (is_empty || x + entry > width - margin) {
      x = margin;
      y += legend_row;
    }
    if (mark == LegendMark::line)
      svg.line(series_classes(i, mark), x, y - 5, x + mark_width, y - 5);
    else
      draw_disc(svg, i, x + 5, y - 5);
    svg.text(x + mark_width + 8, y, name, Anchor::start, "mla-name");
    x += entry + 18;
    is_empty = false;
  }
  return y + 44;
}

void draw_disc(Svg& svg, std::size_t series, double x, double y) {
  svg.add("<circle class=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\"/>\n",
          series_classes(series, LegendMark::disc), x, y, series < colours ? 2.5 : 4);
}

}  // namespace mla::chart
