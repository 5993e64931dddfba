#include "mla/chart/line_chart.h"

#include <algorithm>
#include <cmath>

#include "mla/chart/axes.h"
#include "mla/core/error.h"

namespace mla {
namespace {

using namespace chart;

constexpr std::size_t marked = 30;  // a series of at most so many points shows each

/// A place that can be drawn: beyond 1e300 differences overflow.
bool is_shown(const ChartPoint& point, bool log_x) {
  return std::abs(point.x) < 1e300 && std::abs(point.y) < 1e300 && !(log_x && point.x < 1e-300);
}

Plot plot_of(const LineChart& chart, double top) {
  Range x, y;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& point : series.points) {
      if (!is_shown(point, chart.log_x)) continue;
      x.include(point.x);
      y.include(point.y);
    }
  }
  const bool is_from_zero = !chart.log_x && x.low > 0 && x.low < 0.05 * x.high;
  if (is_from_zero) x.low = 0;  // steps count from 1, but read better from 0
  return Plot(top, x, chart.log_x, vertical_axis(y, chart.y_low, chart.y_high));
}

/// Leaves of the line from a to b what lies on the plot. Whether anything does.
bool cut_to_plot(const Plot& plot, ChartPoint& a, ChartPoint& b) {
  if (std::max(a.y, b.y) < plot.top() || std::min(a.y, b.y) > plot.bottom()) return false;
  const ChartPoint from = a, way{b.x - a.x, b.y - a.y};
  for (ChartPoint* end : {&a, &b}) {
    const double y = std::clamp(end->y, plot.top(), plot.bottom());
    if (y != end->y) *end = {from.x + (y - from.y) / way.y * way.x, y};
  }
  return true;
}

std::string place_of(const ChartPoint& point) {
  return fmt::format("{:.1f} {:.1f}", point.x, point.y);
}

void draw_series(Svg& svg, const Plot& plot, const ChartSeries& series, std::size_t index) {
  std::string path, dots;
  ChartPoint last;
  bool has_last = false, is_joined = false;  // a point to join; the path ends there
  for (const ChartPoint& point : series.points) {
    if (!is_shown(point, plot.x().is_log)) {
      has_last = is_joined = false;
      continue;
    }
    const ChartPoint here{plot.at_x(point.x), std::clamp(plot.at_y(point.y), -1e9, 1e9)};
    ChartPoint from = has_last ? last : here, to = here;
    const bool is_seen = cut_to_plot(plot, from, to), is_whole = is_seen && to.y == here.y;
    if (is_whole) dots += "M" + place_of(here) + "h0";  // a round end of a line of no length
    if (has_last && is_seen) path += (is_joined ? "L" : "M" + place_of(from) + "L") + place_of(to);
    is_joined = has_last && is_whole;
    has_last = true;
    last = here;
  }
  if (!path.empty())
    svg.add("<path class=\"{}\" d=\"{}\"/>\n", series_classes(index, LegendMark::line), path);
  if (!dots.empty() && series.points.size() <= marked)
    svg.add("<path class=\"mla-dot mla-s{}\" d=\"{}\"/>\n", index % colours, dots);
}

}  // namespace

std::string line_chart_svg(const LineChart& chart) {
  require(chart.series.size() <= 2 * colours, "chart: found {} series, expected at most {}",
          chart.series.size(), 2 * colours);
  std::vector<std::string> names;
  for (const ChartSeries& series : chart.series) names.push_back(series.name);
  Svg svg(chart.title);
  const Plot plot = plot_of(chart, draw_legend(svg, names, LegendMark::line));
  const double height = plot.draw(svg, chart.x_label, chart.y_label);
  for (std::size_t i = 0; i < chart.series.size(); ++i) draw_series(svg, plot, chart.series[i], i);
  return svg.finish(height);
}

}  // namespace mla
