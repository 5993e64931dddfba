#pragma once
#include <fmt/format.h>

#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// What all charts share: one size, one set of style rules, text that is measured before it is drawn.
namespace mla::chart {

// In units of the picture. It is narrow, so that text of 13 units is still read where 360 pixels show all of
// it.
inline constexpr double width = 480, margin = 12;
inline constexpr double text_size = 14, small_size = 13;  // of letters: names in legends, class mla-tick
inline constexpr std::size_t colours = 6;                 // of series: classes mla-s0 to mla-s5

enum class Anchor { start, middle, end };

/// The text as XML holds it: markup escaped, control characters as spaces, broken UTF-8 as U+FFFD.
std::string escaped(std::string_view text);

/// Roughly how wide a text of this size is, generously: no font is at hand to measure it with.
double width_of(std::string_view text, double size = small_size);

/// The text, cut with "…" if it is wider than `room`.
std::string shortened(std::string_view text, double room, double size = small_size);

/// "12,000", "0.25"; beyond readable lengths "2e+09".
std::string number(double value, int decimals);

/// Decimals with which a few values are told apart: four digits of the largest and two of the smallest, at
/// most six decimals, and none that are 0 in all of them.
int decimals_of(const std::vector<double>& values);

/// Throws Error unless charts can draw the value: beyond 1e300 differences overflow.
void require_drawable(double value, std::string_view what);

/// A picture that grows downwards from its title.
class Svg {
 public:
  /// Draws the title, in as many rows as it takes.
  explicit Svg(std::string_view title);

  /// Where the title ends.
  double title_end() const { return title_end_; }

  /// Appends elements as they are.
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(body_), format, std::forward<Args>(args)...);
  }
  void text(double x, double y, std::string_view words, Anchor anchor = Anchor::start,
            std::string_view classes = "mla-tick");
  void line(std::string_view classes, double x1, double y1, double x2, double y2);

  std::string finish(double height) const;

 private:
  std::string title_, body_;
  double title_end_ = 0;
};

}  // namespace mla::chart
