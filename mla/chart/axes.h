#pragma once
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mla/chart/svg.h"

/// Scales with their ticks, and the frame of charts that have two of them.
namespace mla::chart {

/// From the least to the greatest of some values.
struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void include(double value);
};

struct Tick {
  double value;
  std::string label;
};

struct Axis {
  double low = 0, high = 1;
  bool is_log = false;
  std::vector<Tick> ticks{};

  /// 0 at `low`, 1 at `high`.
  double place(double value) const;
};

/// About `wanted` ticks at multiples of a round step; if `is_rounded`, the axis ends at ticks. A range of no
/// values is 0 to 1, or 1 to 10 on logarithmic axes; one of a single value gets some room.
Axis linear_axis(Range range, int wanted, bool is_rounded);

/// As many ticks as have room for their labels, side by side over `length`.
Axis horizontal_axis(Range range, bool is_log, double length);

/// Ends where the caller says, else at ticks. Throws Error if `low` isn't below `high`.
Axis vertical_axis(Range range, std::optional<double> low, std::optional<double> high);

/// A rectangle between two axes.
class Plot {
 public:
  Plot(double top, Range x, bool log_x, Axis y);

  double left() const { return left_; }
  double right() const { return width - 20; }
  double top() const { return top_; }
  double bottom() const { return top_ + 250; }
  double at_x(double x) const { return left_ + x_.place(x) * (right() - left_); }
  double at_y(double y) const { return bottom() - y_.place(y) * (bottom() - top_); }
  const Axis& x() const { return x_; }

  /// Grid, ticks and labels. The picture's height.
  double draw(Svg& svg, std::string_view x_label, std::string_view y_label) const;

 private:
  double top_, left_;
  Axis y_, x_;
};

enum class LegendMark { line, disc };

/// The colour of a series; past the last colour the same ones again, of another form.
std::string series_classes(std::size_t index, LegendMark mark);

/// Names beside their marks, in rows below the title. Where the plot below it begins.
double draw_legend(Svg& svg, const std::vector<std::string>& names, LegendMark mark);

/// A point as scatter charts show it.
void draw_disc(Svg& svg, std::size_t series, double x, double y);

}  // namespace mla::chart
