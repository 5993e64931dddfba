#pragma once
#include <optional>
#include <string>
#include <vector>

namespace mla {

struct ChartPoint {
  double x = 0;
  double y = 0;
};

/// One line. Points come in the order in which they are joined; where one can't be drawn, because it isn't
/// finite or its x not above 0 on a logarithmic axis, the line has a gap.
struct ChartSeries {
  std::string name;  ///< for the legend
  std::vector<ChartPoint> points;
};

struct LineChart {
  std::string title;
  std::string x_label;  ///< with the unit: "step", "tokens of context"
  std::string y_label;
  std::vector<ChartSeries> series;
  bool log_x = false;
  /// The ends of the y axis: what lies beyond is cut off. Without them, all points are shown.
  std::optional<double> y_low{}, y_high{};
};

/// The chart as an SVG that needs nothing else, a file of its own or part of a page, with colours for light
/// and dark surroundings. Points of series that have few are marked. Throws Error for more than 12 series, or
/// y_low not below y_high.
std::string line_chart_svg(const LineChart& chart);

}  // namespace mla
