#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mla {

/// A matrix as colours, its first row on top.
struct HeatMap {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<std::string> x_names;  ///< of the columns; none: they are numbered from 0
  std::vector<std::string> y_names;  ///< of the rows
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;  ///< row by row; a cell that is NaN stays blank
  double low = 0;              ///< the value of the lightest colour, which lower ones have too
  double high = 1;             ///< the value of the darkest colour
};

/// The map as an SVG like line_chart_svg's, with its colours' legend; up to 12 x 12 cells hold their values.
/// Colours go from light to dark in even steps of perceived lightness. Throws Error for sizes that don't
/// match, more than 65536 cells, values that are infinite, and low not below high.
std::string heat_map_svg(const HeatMap& map);

}  // namespace mla
