#pragma once
#include <optional>
#include <string>
#include <vector>

namespace mla {

struct Bar {
  std::string name;
  double value = 0;
};

/// Bars lie, so that their names, at the left, can be read.
struct BarChart {
  std::string title;
  std::string y_label;  ///< of the values, with the unit
  std::vector<Bar> bars;
  /// Where bars begin, 0 without it; lower values have no bar, but their number.
  std::optional<double> y_low{};
};

/// The chart as an SVG like line_chart_svg's, every value printed at the end of its bar. Throws Error for
/// numbers that aren't finite.
std::string bar_chart_svg(const BarChart& chart);

}  // namespace mla
