// Charts are well-formed, hold everything they are given, and place it by its values.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "mla/chart/bar_chart.h"
#include "mla/chart/heat_map.h"
#include "mla/chart/line_chart.h"
#include "mla/chart/scatter_chart.h"
#include "support/oracle.h"
#include "support/svg.h"

namespace mla {
namespace {

using test::count;
using test::elements_of;
using test::error_of;
using test::path_of;
using test::SvgElement;
using test::texts_of;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

TEST(LineChartTest, PlacesPointsInProportion) {
  const std::string svg =
      line_chart_svg({"T", "x", "y", {{"a", {{0, 0}, {50, 5}, {100, 10}}}, {"b", {{25, 10}, {75, 0}}}}});
  const std::vector<ChartPoint> a = path_of(svg, "mla-line mla-s0"), b = path_of(svg, "mla-line mla-s1");
  ASSERT_EQ(a.size(), 3u);
  ASSERT_EQ(b.size(), 2u);
  EXPECT_LT(a[0].x, a[2].x);
  EXPECT_GT(a[0].y, a[2].y);  // up
  EXPECT_NEAR(a[1].x, (a[0].x + a[2].x) / 2, 0.1);
  EXPECT_NEAR(a[1].y, (a[0].y + a[2].y) / 2, 0.1);
  EXPECT_NEAR(b[0].x, a[0].x + (a[2].x - a[0].x) / 4, 0.1);
  EXPECT_NEAR(b[0].y, a[2].y, 0.01);
  for (const std::string tick : {">0<", ">20<", ">100<", ">10<"}) EXPECT_NE(svg.find(tick), svg.npos) << tick;
}

TEST(LineChartTest, GapsWhereNothingIsFinite) {
  const std::string svg = line_chart_svg({"", "", "", {{"a", {{0, 0}, {1, nan}, {2, 1}, {3, 2}}}}});
  const std::size_t at = svg.find("<path class=\"mla-line mla-s0\"");
  const std::string path = svg.substr(at, svg.find("/>", at) - at);
  EXPECT_EQ(count(path, "M"), 1);
  EXPECT_EQ(count(path, "L"), 1);
  EXPECT_EQ(count(svg, "h0"), 3);  // the point alone is marked too
  EXPECT_EQ(svg.find("nan"), svg.npos);
}

TEST(LineChartTest, DrawsWhateverTheNumbers) {
  const double most = std::numeric_limits<double>::max(), least = std::numeric_limits<double>::denorm_min();
  const std::vector<std::vector<ChartPoint>> series{{},
                                                    {{1, 1}},
                                                    {{0, 0}},
                                                    {{5, -3}, {5, -3}},
                                                    {{0, most}, {1, -most}},
                                                    {{0, 1e299}, {1, -1e299}},
                                                    {{0, least}, {1, 0}},
                                                    {{infinity, 1}, {-infinity, 2}},
                                                    {{0, 1}, {1, 1 + 1e-15}},
                                                    {{1e18, 1}, {1e18 + 1e4, 2}}};
  for (const auto& points : series) {
    const std::string svg = line_chart_svg({"T", "x", "y", {{"a", points}}});
    EXPECT_EQ(svg.find("nan"), svg.npos) << svg;
    EXPECT_EQ(svg.find("inf"), svg.npos) << svg;
    EXPECT_LT(svg.size(), 10000u);
    EXPECT_GE(texts_of(svg, "mla-tick").size(), 6u);  // of which two are the axes' labels
  }
}

TEST(LineChartTest, CutsAtTheGivenEnds) {
  const std::vector<ChartPoint> points{{0, 100}, {1, 4}, {2, 2}, {3, 3}, {4, 0}};
  const std::string whole = line_chart_svg({"", "", "", {{"a", points}}});
  const std::string svg = line_chart_svg({"", "", "", {{"a", points}}, false, 1, 5});
  const std::vector<ChartPoint> path = path_of(svg, "mla-line mla-s0");
  ASSERT_EQ(path.size(), 5u);
  const double unit = path[1].y - path[2].y;          // from 4 to 2
  EXPECT_NEAR(path[0].y, path[1].y + unit / 2, 0.2);  // 5
  EXPECT_NEAR(path[4].y, path[2].y - unit / 2, 0.2);  // 1
  EXPECT_GT(path[0].x, path_of(whole, "mla-line mla-s0")[0].x);
  EXPECT_LT(path[0].x, path[1].x);
  EXPECT_EQ(count(svg, "h0"), 3);  // the points on the plot
  EXPECT_EQ(path_of(line_chart_svg({"", "", "", {{"a", points}}, false, 200, 300}), "mla-line mla-s0").size(),
            0u);
  EXPECT_EQ(path_of(line_chart_svg({"", "", "", {{"a", {{0, 9}, {1, -9}, {2, 9}}}}, false, -1, 1}),
                    "mla-line mla-s0")
                .size(),
            4u);  // through the plot and back
  EXPECT_EQ(error_of([&] {
              line_chart_svg({"", "", "", {}, false, 2, 2});
            }),
            "chart: y_low: found 2, expected less than y_high, 2");
  EXPECT_EQ(error_of([&] {
              line_chart_svg({"", "", "", {}, false, {}, nan});
            }),
            "chart: y_high: found nan, expected a number between -1e300 and 1e300");
}

TEST(LineChartTest, LogarithmicSteps) {
  const std::string svg = line_chart_svg({"", "", "", {{"a", {{0, 5}, {10, 1}, {100, 2}, {1000, 3}}}}, true});
  const std::vector<ChartPoint> path = path_of(svg, "mla-line mla-s0");
  ASSERT_EQ(path.size(), 3u);  // 0 has no place
  EXPECT_NEAR(path[1].x - path[0].x, path[2].x - path[1].x, 0.11);
  for (const std::string tick : {">10<", ">20<", ">500<", ">1,000<"})
    EXPECT_NE(svg.find(tick), svg.npos) << tick;
  for (const double high : {1e-299, 1.0000001, 1.5, 3.0, 7.0, 1e5, 1e12, 1e299}) {
    for (const double low : {1e-299, 1e-6, 1.0}) {
      const std::string any = line_chart_svg({"T", "x", "y", {{"a", {{low, 1}, {high, 2}}}}, true});
      EXPECT_EQ(any.find("nan"), any.npos) << any;
      EXPECT_EQ(any.find("inf"), any.npos) << any;
      EXPECT_LT(any.size(), 10000u);
      EXPECT_GE(texts_of(any, "mla-tick").size(), 5u) << any;
    }
  }
}

TEST(LineChartTest, StandsAlone) {
  LineChart chart{"a < b & \"c\"", "x", "y", {}};
  for (int i = 0; i < 12; ++i)
    chart.series.push_back({"a series with a long name " + std::to_string(i), {{0, i + 0.5}, {1, 2}}});
  const std::string svg = line_chart_svg(chart);
  EXPECT_NE(svg.find("a &lt; b &amp; &quot;c&quot;"), svg.npos);
  EXPECT_NE(svg.find("prefers-color-scheme: dark"), svg.npos);
  for (const std::string outside : {"<script", "href", "url(", "@import"})
    EXPECT_EQ(svg.find(outside), svg.npos);
  EXPECT_EQ(count(svg, "http"), 1);                 // the namespace
  EXPECT_EQ(count(svg, "mla-line mla-dash "), 12);  // the last six, in the legend and the plot
  chart.series.push_back({"one more", {}});
  EXPECT_EQ(error_of([&] { line_chart_svg(chart); }), "chart: found 13 series, expected at most 12");
}

TEST(ScatterChartTest, EveryPointIsPlacedAndNamed) {
  const ScatterChart chart{
      "T", "bytes", "loss", true, {{"one", {{10, 3, "a<b"}, {100, 1, "c"}}}, {"two", {{1000, 2, "d"}}}}};
  const std::string svg = scatter_chart_svg(chart);
  std::vector<SvgElement> one = elements_of(svg, "mla-disc mla-s0"),
                          two = elements_of(svg, "mla-disc mla-s1");
  ASSERT_EQ(one.size(), 3u);  // the first of each is the legend's
  ASSERT_EQ(two.size(), 2u);
  EXPECT_NEAR(one[2].number("cx") - one[1].number("cx"), two[1].number("cx") - one[2].number("cx"), 0.11);
  EXPECT_LT(one[1].number("cy"), two[1].number("cy"));  // greater is higher
  EXPECT_LT(two[1].number("cy"), one[2].number("cy"));
  EXPECT_EQ(texts_of(svg, "mla-label"), (std::vector<std::string>{"a<b", "c", "d"}));
  EXPECT_EQ(texts_of(svg, "mla-name"), (std::vector<std::string>{"one", "two"}));
}

TEST(ScatterChartTest, NamesKeepClearOfEachOther) {
  ScatterChart chart{"", "", "", false, {{"", {}}}};
  for (int i = 0; i < 6; ++i) chart.series[0].points.push_back({i % 2 + 0.1 * i, i / 2 * 0.4, "name"});
  const std::vector<SvgElement> names = elements_of(scatter_chart_svg(chart), "mla-label");
  ASSERT_EQ(names.size(), 6u);
  const auto left = [](const SvgElement& name) {
    const auto anchor = name.attributes.find("text-anchor");
    const double wide = 34;  // of "name"
    return name.number("x") - (anchor == name.attributes.end() ? 0
                               : anchor->second == "end"       ? wide
                                                               : wide / 2);
  };
  for (std::size_t i = 0; i < names.size(); ++i) {
    for (std::size_t k = 0; k < i; ++k)
      EXPECT_TRUE(std::abs(left(names[i]) - left(names[k])) > 33 ||
                  std::abs(names[i].number("y") - names[k].number("y")) > 13)
          << i << " " << k;
    EXPECT_GE(left(names[i]), 0);
    EXPECT_LE(left(names[i]) + 34, 480);
  }
}

TEST(ScatterChartTest, FewPointsAndWrongOnes) {
  EXPECT_EQ(elements_of(scatter_chart_svg({}))[0].name, "svg");
  EXPECT_EQ(elements_of(scatter_chart_svg({"", "", "", true, {{"", {}}}}), "mla-disc mla-s0").size(), 0u);
  for (const double x : {1e-299, 1.0, 1e299})
    EXPECT_EQ(scatter_chart_svg({"", "", "", true, {{"", {{x, 0, ""}, {1, 1, ""}}}}}).find("nan"),
              std::string::npos);
  const auto error = [](ScatterPoint point, bool log_x) {
    return error_of([&] { scatter_chart_svg({"", "", "", log_x, {{"", {point}}}}); });
  };
  EXPECT_EQ(error({nan, 1, "p"}, false),
            "chart: point 'p': x: found nan, expected a number between -1e300 and 1e300");
  EXPECT_EQ(error({1, infinity, "p"}, false),
            "chart: point 'p': y: found inf, expected a number between -1e300 and 1e300");
  EXPECT_EQ(error({0, 1, "p"}, true), "chart: point 'p': x: found 0, expected a number above 0");
  EXPECT_EQ(error({0, 1, "p"}, false), "");
  EXPECT_EQ(error_of([] {
              scatter_chart_svg({"", "", "", false, std::vector<ScatterSeries>(13)});
            }),
            "chart: found 13 series, expected at most 12");
}

TEST(BarChartTest, LengthsFollowValues) {
  const std::string svg = bar_chart_svg({"T", "bytes", {{"a & b", 1000}, {"c", 4000}, {"d", 0}}});
  const std::vector<SvgElement> bars = elements_of(svg, "mla-bar");
  ASSERT_EQ(bars.size(), 3u);
  EXPECT_NEAR(bars[1].number("width"), 4 * bars[0].number("width"), 0.3);
  EXPECT_EQ(bars[2].number("width"), 0);
  EXPECT_EQ(bars[0].number("x"), bars[1].number("x"));
  EXPECT_LT(bars[0].number("y"), bars[1].number("y"));
  EXPECT_EQ(texts_of(svg, "mla-name"), (std::vector<std::string>{"a & b", "c", "d"}));
  EXPECT_EQ(texts_of(svg, "mla-value"), (std::vector<std::string>{"1,000", "4,000", "0"}));
}

TEST(BarChartTest, BeginsWhereItIsTold) {
  const std::string svg = bar_chart_svg({"", "", {{"a", 2.125}, {"b", 2.5}, {"c", 1}}, 2.0});
  const std::vector<SvgElement> bars = elements_of(svg, "mla-bar");
  EXPECT_NEAR(bars[1].number("width"), 4 * bars[0].number("width"), 0.3);
  EXPECT_EQ(bars[2].number("width"), 0);
  EXPECT_EQ(texts_of(svg, "mla-value"), (std::vector<std::string>{"2.125", "2.500", "1.000"}));
}

TEST(BarChartTest, NegativeValuesFewAndWrongOnes) {
  const std::vector<SvgElement> bars = elements_of(bar_chart_svg({"", "", {{"a", -2}, {"b", 1}}}), "mla-bar");
  EXPECT_NEAR(bars[0].number("width"), 2 * bars[1].number("width"), 0.3);
  EXPECT_NEAR(bars[0].number("x") + bars[0].number("width"), bars[1].number("x"), 0.11);
  EXPECT_EQ(elements_of(bar_chart_svg({}), "mla-bar").size(), 0u);
  for (const double value : {0.0, 1e-299, -1e299, 1e299}) {
    const std::string svg = bar_chart_svg({"", "", {{"a", value}}});
    EXPECT_EQ(elements_of(svg, "mla-bar").size(), 1u);
    EXPECT_EQ(svg.find("nan"), svg.npos);
  }
  EXPECT_EQ(error_of([] {
              bar_chart_svg({"", "", {{"a", nan}}});
            }),
            "chart: bar 'a': found nan, expected a number between -1e300 and 1e300");
  EXPECT_EQ(error_of([] {
              bar_chart_svg({"", "", {}, infinity});
            }),
            "chart: y_low: found inf, expected a number between -1e300 and 1e300");
}

/// The sum of a colour's parts.
int brightness(const std::string& colour) {
  return std::stoi(colour.substr(1, 2), nullptr, 16) + std::stoi(colour.substr(3, 2), nullptr, 16) +
         std::stoi(colour.substr(5, 2), nullptr, 16);
}

TEST(HeatMapTest, GreaterIsDarker) {
  HeatMap map{"T", "x", "y", {}, {}, 1, 100, {}, 0, 99};
  for (int i = 0; i < 100; ++i) map.values.push_back(i);
  const std::string svg = heat_map_svg(map);
  int last = 3 * 255 + 1;
  std::int64_t cells = 0;
  for (const SvgElement& element : elements_of(svg)) {
    if (element.name != "path") continue;
    EXPECT_LT(brightness(element.attributes.at("fill")), last);
    last = brightness(element.attributes.at("fill"));
    for (std::int64_t k = 0; k < count(element.attributes.at("d"), "M");
         ++k, ++cells)  // in the values' order
      EXPECT_NE(element.attributes.at("d").find("M" + std::to_string(cells) + " 0h"), std::string::npos);
  }
  EXPECT_EQ(cells, 100);
  EXPECT_EQ(texts_of(svg, "mla-on-light").size(), 0u);  // too many to be printed
}

TEST(HeatMapTest, CellsHoldTheirValues) {
  const std::string svg =
      heat_map_svg({"T", "x", "y", {"<s>", "b", "c"}, {"d", "e"}, 2, 3, {0, 0.25, nan, 1, 2, -1}});
  EXPECT_EQ(texts_of(svg, "mla-on-light"), (std::vector<std::string>{"0.00", "0.25", "\u22121.00"}));
  EXPECT_EQ(texts_of(svg, "mla-on-dark"), (std::vector<std::string>{"1.00", "2.00"}));
  EXPECT_EQ(count(svg, "h1v1h-1z"), 5);
  const std::vector<std::string> ticks = texts_of(svg, "mla-tick");
  for (const std::string name : {"<s>", "b", "c", "d", "e", "x", "y", "0", "1"})
    EXPECT_NE(std::ranges::find(ticks, name), ticks.end()) << name;
}

TEST(HeatMapTest, AnySize) {
  for (const std::int64_t rows : {0, 1, 12, 13, 256}) {
    for (const std::int64_t cols : {0, 1, 13, 256}) {
      HeatMap map{"T", "x",  "y",  {},
                  {},  rows, cols, std::vector<double>(static_cast<std::size_t>(rows * cols))};
      std::string svg = heat_map_svg(map);
      EXPECT_EQ(count(svg, "h1v1h-1z"), rows * cols);
      map.x_names.assign(static_cast<std::size_t>(cols), "a rather long name \xff\xe4");
      map.y_names.assign(static_cast<std::size_t>(rows), "one more long name");
      svg = heat_map_svg(map);
      EXPECT_EQ(elements_of(svg)[0].name, "svg");
      EXPECT_EQ(svg.find("nan"), svg.npos);
      EXPECT_EQ(svg.find('\xff'), svg.npos);
    }
  }
}

TEST(HeatMapTest, Errors) {
  const auto error = [](const HeatMap& map) { return error_of([&] { heat_map_svg(map); }); };
  EXPECT_EQ(error({"", "", "", {}, {}, 2, 2, {1}}), "chart: found 1 values, expected 2 x 2");
  EXPECT_EQ(error({"", "", "", {"a"}, {}, 1, 2, {1, 2}}), "chart: found 1 x_names, expected 2");
  EXPECT_EQ(error({"", "", "", {}, {"a"}, 2, 1, {1, 2}}), "chart: found 1 y_names, expected 2");
  EXPECT_EQ(error({"", "", "", {}, {}, -1, 0, {}}), "chart: found -1 x 0 cells, expected at most 65536");
  EXPECT_EQ(error({"", "", "", {}, {}, 257, 256, {}}),
            "chart: found 257 x 256 cells, expected at most 65536");
  EXPECT_EQ(error({"", "", "", {}, {}, std::int64_t{1} << 62, 4, {}}),
            "chart: found 4611686018427387904 x 4 cells, expected at most 65536");
  EXPECT_EQ(error({"", "", "", {}, {}, 1, 2, {1, infinity}}),
            "chart: row 0, column 1: found inf, expected a number between -1e300 and 1e300");
  EXPECT_EQ(error({"", "", "", {}, {}, 0, 0, {}, 1, 1}), "chart: low: found 1, expected less than high, 1");
  EXPECT_EQ(error({"", "", "", {}, {}, 0, 0, {}, nan, 1}),
            "chart: low: found nan, expected a number between -1e300 and 1e300");
}

TEST(ChartsTest, AnyTextIsXml) {
  const std::string svg = bar_chart_svg({"<&>\"'", "\xff", {{"a\x01\tb", 1}, {"\xEF\xBF\xBF\xC3\xA9", 2}}});
  EXPECT_EQ(elements_of(svg)[1].text, "<&>\"'");
  EXPECT_EQ(texts_of(svg, "mla-name"), (std::vector<std::string>{"a  b", "\uFFFD\u00E9"}));
  EXPECT_EQ(texts_of(svg, "mla-tick").back(), "\uFFFD");
}

TEST(ChartsTest, DisturbNoPage) {
  const std::string line = line_chart_svg({"T", "x", "y", {{"a", {{0, 1}, {1, 2}}}}});
  const std::vector<std::string> svgs{line, scatter_chart_svg({"T", "x", "y", false, {{"a", {{1, 2, "p"}}}}}),
                                      bar_chart_svg({"T", "y", {{"a", 1}}}),
                                      heat_map_svg({"T", "x", "y", {}, {}, 1, 1, {0.5}})};
  const auto style = [](const std::string& svg) {
    const std::size_t from = svg.find("<style>");
    return svg.substr(from, svg.find("</style>") - from);
  };
  for (const std::string& svg : svgs) {
    EXPECT_EQ(style(svg), style(line));
    for (const std::string token : {" id=", "url(", "href", "<script", "@import"})
      EXPECT_EQ(svg.find(token), svg.npos) << token;
    const std::vector<SvgElement> elements = elements_of(svg);
    EXPECT_EQ(elements[0].attributes.at("role"), "img");
    EXPECT_EQ(elements[1].name, "title");
    EXPECT_EQ(elements[1].text, "T");
    for (const SvgElement& element : elements) {
      const auto classes = element.attributes.find("class");
      EXPECT_TRUE(classes == element.attributes.end() || classes->second.starts_with("mla-"));
    }
  }
}

}  // namespace
}  // namespace mla
