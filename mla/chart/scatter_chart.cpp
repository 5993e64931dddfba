#include "mla/chart/scatter_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/chart/axes.h"
#include "mla/core/error.h"

namespace mla {
namespace {

using namespace chart;

constexpr double disc = 5, away = 9;     // a point's radius; from its centre to its name
constexpr double above = 10, below = 4;  // a name's box, from its base line
constexpr double clearance = 0.05;       // between the points and the plot's sides, as a share

struct Box {
  double left, top, right, bottom;

  double area() const { return std::max(0.0, right - left) * std::max(0.0, bottom - top); }
  double common(const Box& other) const {
    return Box{std::max(left, other.left), std::max(top, other.top), std::min(right, other.right),
               std::min(bottom, other.bottom)}
        .area();
  }
};

/// Where a name can stand: its base line's beginning, middle or end.
struct Place {
  double x, y;
  Anchor anchor;

  Box box(double wide) const {
    const double from = x - (anchor == Anchor::start ? 0 : anchor == Anchor::middle ? wide / 2 : wide);
    return {from, y - above, from + wide, y + below};
  }
};

/// Finds places for names among points.
class NamePlacer {
 public:
  explicit NamePlacer(const Plot& plot)
      : ground_{plot.left() + 2, plot.top(), width - 4, plot.bottom() - 2} {}

  void avoid_disc(double x, double y) { taken_.push_back({x - disc, y - disc, x + disc, y + disc}); }

  /// The first place around a point where the name covers nothing, else where it covers least.
  Place place(double x, double y, double wide) {
    const Place places[] = {{x + away, y + 4.5, Anchor::start},    {x - away, y + 4.5, Anchor::end},
                            {x, y - away, Anchor::middle},         {x, y + away + 9, Anchor::middle},
                            {x + 5, y - away, Anchor::start},      {x + 5, y + away + 9, Anchor::start},
                            {x - 5, y - away, Anchor::end},        {x - 5, y + away + 9, Anchor::end},
                            {x + 5, y - away - 15, Anchor::start}, {x + 5, y + away + 24, Anchor::start}};
    Place best = places[0];
    double least = std::numeric_limits<double>::infinity();
    for (const Place& place : places) {
      const Box box = place.box(wide);
      double covered = 3 * (box.area() - box.common(ground_));  // to be cut off is worse than to be covered
      for (const Box& other : taken_) covered += box.common(other);
      if (covered < least - 1e-6) {
        least = covered;
        best = place;
      }
    }
    taken_.push_back(best.box(wide));
    return best;
  }

 private:
  Box ground_;
  std::vector<Box> taken_;
};

void check(const ScatterChart& chart) {
  require(chart.series.size() <= 2 * colours, "chart: found {} series, expected at most {}",
          chart.series.size(), 2 * colours);
  for (const ScatterSeries& series : chart.series) {
    for (const ScatterPoint& point : series.points) {
      require_drawable(point.x, fmt::format("point '{}': x", point.name));
      require_drawable(point.y, fmt::format("point '{}': y", point.name));
      if (chart.log_x)
        require(point.x > 1e-300, "chart: point '{}': x: found {}, expected a number above 0", point.name,
                point.x);
    }
  }
}

/// The same range with room at both ends.
Range widened(Range range, bool is_log) {
  if (!(range.low < range.high)) return range;
  if (is_log) {
    const double factor = std::exp(clearance * (std::log(range.high) - std::log(range.low)));
    return {range.low / factor, range.high * factor};
  }
  const double room = clearance * (range.high - range.low);
  const bool stays_positive = range.low >= 0 && range.low < room;
  return {stays_positive ? 0 : range.low - room, range.high + room};
}

Plot plot_of(const ScatterChart& chart, double top) {
  Range x, y;
  for (const ScatterSeries& series : chart.series) {
    for (const ScatterPoint& point : series.points) {
      x.include(point.x);
      y.include(point.y);
    }
  }
  return Plot(top, widened(x, chart.log_x), chart.log_x, vertical_axis(widened(y, false), {}, {}));
}

}  // namespace

std::string scatter_chart_svg(const ScatterChart& chart) {
  check(chart);
  std::vector<std::string> names;
  for (const ScatterSeries& series : chart.series) names.push_back(series.name);
  Svg svg(chart.title);
  const Plot plot = plot_of(chart, draw_legend(svg, names, LegendMark::disc));
  const double height = plot.draw(svg, chart.x_label, chart.y_label);
  NamePlacer placer(plot);
  for (std::size_t i = 0; i < chart.series.size(); ++i) {
    for (const ScatterPoint& point : chart.series[i].points) {
      draw_disc(svg, i, plot.at_x(point.x), plot.at_y(point.y));
      placer.avoid_disc(plot.at_x(point.x), plot.at_y(point.y));
    }
  }
  for (const ScatterSeries& series : chart.series) {
    for (const ScatterPoint& point : series.points) {
      if (point.name.empty()) continue;
      const std::string name = shortened(point.name, width / 2);
      const Place place = placer.place(plot.at_x(point.x), plot.at_y(point.y), width_of(name));
      svg.text(place.x, place.y, name, place.anchor, "mla-label");
    }
  }
  return svg.finish(height);
}

}  // namespace mla
