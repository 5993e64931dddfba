#include "mla/chart/heat_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "mla/chart/axes.h"
#include "mla/core/error.h"

namespace mla {
namespace {

using namespace chart;

constexpr std::int64_t most_cells = 65536, most_printed = 12;
constexpr std::size_t shades = 64;
constexpr double tallest_cell = 44, tallest_map = 400;
constexpr double most_name = 120, line = 15;  // of a name: its longest, and the height it needs
constexpr double value_size = 12;             // class mla-on-light

/// The lightness, in OKLab, of the shade from 0 to 1.
double lightness(double shade) {
  return 0.96 - 0.64 * shade;
}

/// "#rrggbb" of a blue that loses lightness in even steps, by the OKLab colour space.
std::string colour(double shade) {
  const double light = lightness(shade), hue = 255 * std::numbers::pi / 180;
  const double chroma = 0.02 + 0.11 * std::sin(std::numbers::pi * std::min(0.5, shade) * 0.95);
  const double a = chroma * std::cos(hue), b = chroma * std::sin(hue);
  const double l = std::pow(light + 0.3963377774 * a + 0.2158037573 * b, 3);
  const double m = std::pow(light - 0.1055613458 * a - 0.0638541728 * b, 3);
  const double s = std::pow(light - 0.0894841775 * a - 1.2914855480 * b, 3);
  const std::array<double, 3> linear = {4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
                                        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
                                        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s};
  std::string text = "#";
  for (const double c : linear) {
    const double curved = c <= 0.0031308 ? 12.92 * c : 1.055 * std::pow(c, 1 / 2.4) - 0.055;
    text += fmt::format("{:02x}", static_cast<int>(std::lround(255 * std::clamp(curved, 0.0, 1.0))));
  }
  return text;
}

void check(const HeatMap& map) {
  require(map.rows >= 0 && map.cols >= 0 && map.rows <= most_cells && map.cols <= most_cells &&
              map.rows * map.cols <= most_cells,
          "chart: found {} x {} cells, expected at most {}", map.rows, map.cols, most_cells);
  const auto rows = static_cast<std::size_t>(map.rows), cols = static_cast<std::size_t>(map.cols);
  require(map.values.size() == rows * cols, "chart: found {} values, expected {} x {}", map.values.size(),
          rows, cols);
  require(map.x_names.empty() || map.x_names.size() == cols, "chart: found {} x_names, expected {}",
          map.x_names.size(), cols);
  require(map.y_names.empty() || map.y_names.size() == rows, "chart: found {} y_names, expected {}",
          map.y_names.size(), rows);
  require_drawable(map.low, "low");
  require_drawable(map.high, "high");
  require(map.low < map.high, "chart: low: found {}, expected less than high, {}", map.low, map.high);
  for (std::size_t i = 0; i < map.values.size(); ++i) {
    if (!std::isnan(map.values[i]))
      require_drawable(map.values[i], fmt::format("row {}, column {}", i / cols, i % cols));
  }
}

/// What stands at rows or columns, and at every how many of them.
struct Names {
  std::vector<std::string> texts;
  double longest = 0;  // of the texts
  std::int64_t every = 1;
};

/// The given names, or numbers from 0.
Names names_of(const std::vector<std::string>& given, std::int64_t count) {
  Names names;
  for (std::int64_t i = 0; i < count; ++i) {
    names.texts.push_back(given.empty() ? std::to_string(i)
                                        : shortened(given[static_cast<std::size_t>(i)], most_name));
    names.longest = std::max(names.longest, width_of(names.texts.back()));
  }
  return names;
}

/// Every how many cells, of 1, 2, 5, 10, 20 and so on, there is room for a name.
std::int64_t every_for(double room, double cell) {
  for (std::int64_t power = 1;; power *= 10) {
    for (const std::int64_t digit : {1, 2, 5}) {
      if (static_cast<double>(digit * power) * cell >= room) return digit * power;
    }
  }
}

/// A map's places, and the picture that it draws into.
class Drawing {
 public:
  explicit Drawing(const HeatMap& map);
  std::string draw();

 private:
  double shade_of(double value) const {
    return std::clamp((value - map_.low) / (map_.high - map_.low), 0.0, 1.0);
  }
  void draw_legend();
  void draw_cells();
  void draw_values();
  void draw_x_names();
  void draw_y_names();

  const HeatMap& map_;
  Svg svg_;
  Names x_names_, y_names_;
  bool is_slanted_ = false;  // column names
  double left_ = 0, top_ = 0, cell_width_ = 0, cell_height_ = 0, right_ = 0, bottom_ = 0;
};

Drawing::Drawing(const HeatMap& map)
    : map_(map),
      svg_(map.title),
      x_names_(names_of(map.x_names, map.cols)),
      y_names_(names_of(map.y_names, map.rows)) {
  const auto cols = static_cast<double>(std::max<std::int64_t>(map.cols, 1));
  const auto rows = static_cast<double>(std::max<std::int64_t>(map.rows, 1));
  left_ = margin + y_names_.longest + 8;
  cell_width_ = (width - margin - left_) / cols;
  is_slanted_ = !map.x_names.empty() && x_names_.longest + 6 > cell_width_;
  if (is_slanted_) {  // the first name reaches to the left of its column
    left_ = std::max(left_, margin + 0.71 * width_of(x_names_.texts[0]));
    cell_width_ = (width - margin - left_) / cols;
  }
  const double square = std::min(cell_width_, tallest_cell);
  cell_height_ = std::min(map.y_names.empty() ? square : std::max(square, line + 3), tallest_map / rows);
  x_names_.every = every_for(is_slanted_ ? line + 2 : x_names_.longest + 12, cell_width_);
  y_names_.every = every_for(line, cell_height_);
  top_ = svg_.title_end() + 38;
  right_ = left_ + cols * cell_width_;
  bottom_ = top_ + rows * cell_height_;
}

/// Low, the shades, high, at the right; the rows' label beside it.
void Drawing::draw_legend() {
  const int decimals = decimals_of({map_.low, map_.high});
  const std::string low = number(map_.low, decimals), high = number(map_.high, decimals);
  const double y = top_ - 22, steps = 32, step = 3;
  const double from = right_ - width_of(high) - 6 - steps * step;
  svg_.text(right_, y + 10, high, Anchor::end);
  svg_.text(from - 6, y + 10, low, Anchor::end);
  svg_.add("<g class=\"mla-cells\">\n");
  for (int i = 0; i < static_cast<int>(steps); ++i)
    svg_.add("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"11\" fill=\"{}\"/>\n", from + i * step, y,
             step, colour(i / (steps - 1)));
  svg_.add("</g>\n");
  svg_.add("<rect class=\"mla-axis\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{}\" height=\"11\"/>\n", from, y,
           steps * step);
  svg_.text(margin, y + 10, shortened(map_.y_label, from - 6 - width_of(low) - 12 - margin));
}

/// One path for each shade, in units of a cell, since a map may have many cells.
void Drawing::draw_cells() {
  std::array<std::string, shades> paths;
  for (std::size_t i = 0; i < map_.values.size(); ++i) {
    if (std::isnan(map_.values[i])) continue;
    const auto cols = static_cast<std::size_t>(map_.cols);
    const auto shade = static_cast<std::size_t>(std::lround(shade_of(map_.values[i]) * (shades - 1)));
    paths[shade] += fmt::format("M{} {}h1v1h-1z", i % cols, i / cols);
  }
  svg_.add("<g class=\"mla-cells\" transform=\"translate({:.2f} {:.2f}) scale({:.4f} {:.4f})\">\n", left_,
           top_, cell_width_, cell_height_);
  for (std::size_t i = 0; i < shades; ++i) {
    if (!paths[i].empty())
      svg_.add("<path fill=\"{}\" d=\"{}\"/>\n", colour(static_cast<double>(i) / (shades - 1)), paths[i]);
  }
  svg_.add("</g>\n<rect class=\"mla-axis\" x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\"/>\n",
           left_, top_, right_ - left_, bottom_ - top_);
}

/// As many decimals as tell a hundredth of the range apart, or as have room in a cell.
void Drawing::draw_values() {
  if (map_.rows > most_printed || map_.cols > most_printed) return;
  const auto widest = [&](int decimals) {
    double wide = 0;
    for (const double value : map_.values)
      wide = std::max(wide, width_of(number(value, decimals), value_size));
    return wide;
  };
  int decimals = static_cast<int>(std::clamp(2 - std::floor(std::log10(map_.high - map_.low)), 0.0, 6.0));
  while (decimals > 0 && widest(decimals) > cell_width_) --decimals;
  for (std::size_t i = 0; i < map_.values.size(); ++i) {
    if (std::isnan(map_.values[i])) continue;
    const auto col = static_cast<double>(i % static_cast<std::size_t>(map_.cols));
    const auto row = static_cast<double>(i / static_cast<std::size_t>(map_.cols));
    svg_.text(left_ + (col + 0.5) * cell_width_, top_ + (row + 0.5) * cell_height_ + 4.2,
              number(map_.values[i], decimals), Anchor::middle,
              lightness(shade_of(map_.values[i])) > 0.65 ? "mla-on-light" : "mla-on-dark");
  }
}

void Drawing::draw_x_names() {
  for (std::int64_t i = 0; i < map_.cols; i += x_names_.every) {
    const double x = left_ + (static_cast<double>(i) + 0.5) * cell_width_;
    const std::string& name = x_names_.texts[static_cast<std::size_t>(i)];
    if (is_slanted_)
      svg_.add(
          "<text class=\"mla-tick\" text-anchor=\"end\" transform=\"translate({:.1f} {:.1f}) rotate(-45)\">"
          "{}</text>\n",
          x + 4, bottom_ + 13, escaped(name));
    else
      svg_.text(x, bottom_ + 17, name, Anchor::middle);
  }
}

void Drawing::draw_y_names() {
  for (std::int64_t i = 0; i < map_.rows; i += y_names_.every)
    svg_.text(left_ - 6, top_ + (static_cast<double>(i) + 0.5) * cell_height_ + 4.5,
              y_names_.texts[static_cast<std::size_t>(i)], Anchor::end);
}

std::string Drawing::draw() {
  draw_legend();
  draw_cells();
  draw_values();
  draw_x_names();
  draw_y_names();
  const double end = bottom_ + (is_slanted_ ? 0.71 * x_names_.longest + 16 : 22);
  if (map_.x_label.empty()) return svg_.finish(end + 2);
  svg_.text(right_, end + 14, shortened(map_.x_label, width - 2 * margin), Anchor::end);
  return svg_.finish(end + 14 + margin);
}

}  // namespace

std::string heat_map_svg(const HeatMap& map) {
  check(map);
  return Drawing(map).draw();
}

}  // namespace mla
