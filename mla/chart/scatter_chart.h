#pragma once
#include <string>
#include <vector>

namespace mla {

struct ScatterPoint {
  double x = 0;
  double y = 0;
  std::string name;  ///< written beside it; may be empty
};

/// Points of one colour.
struct ScatterSeries {
  std::string name;  ///< for the legend; may be empty
  std::vector<ScatterPoint> points;
};

struct ScatterChart {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_x = false;
  std::vector<ScatterSeries> series;
};

/// The chart as an SVG like line_chart_svg's. Names are placed one after another, each where it covers the
/// least of points and of names before it. Throws Error for more than 12 series, and for numbers that aren't
/// finite or have no place on a logarithmic axis.
std::string scatter_chart_svg(const ScatterChart& chart);

}  // namespace mla
