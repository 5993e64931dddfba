#include "mla/chart/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mla/core/error.h"
#include "mla/core/utf8.h"

namespace mla::chart {
namespace {

constexpr double title_size = 17.5, title_row = 21;  // bold letters of 16 are as wide as plain ones of 17.5
constexpr double enlarged = 1.125;                   // shown at this size where there is room

// The rules of an SVG inside a page hold for all of the page. So every chart brings the same ones, and every
// class has our prefix. Plain rules: not every renderer knows CSS variables.
constexpr std::string_view style = R"css(
  .mla-chart { font: 14px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #3c4043; max-width: 100%; height: auto; }
  .mla-title { font-size: 16px; font-weight: 600; fill: #202124; }
  .mla-tick { font-size: 13px; fill: #5f6368; }
  .mla-label { font-size: 13px; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
  .mla-ground { fill: #ffffff; }
  .mla-grid { stroke: #e3e5e8; }
  .mla-axis { stroke: #80868b; fill: none; }
  .mla-line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
  .mla-dash { stroke-dasharray: 7 5; }
  .mla-dot { stroke-width: 7; stroke-linecap: round; }
  .mla-disc { fill: none; stroke-width: 5; }
  .mla-ring { fill: none; stroke-width: 2; }
  .mla-bar { fill: #1f6fd0; }
  .mla-cells { shape-rendering: crispEdges; }
  .mla-on-light { font-size: 12px; fill: #17191c; }
  .mla-on-dark { font-size: 12px; fill: #ffffff; }
  .mla-s0 { stroke: #1f6fd0; } .mla-s1 { stroke: #c2570c; } .mla-s2 { stroke: #1a7f4b; }
  .mla-s3 { stroke: #7d4bc0; } .mla-s4 { stroke: #c0265f; } .mla-s5 { stroke: #7a6a00; }
  @media (prefers-color-scheme: dark) {
    .mla-chart { fill: #c4c7cc; }
    .mla-title { fill: #e8eaed; }
    .mla-tick { fill: #9aa0a6; }
    .mla-label { stroke: #17191c; }
    .mla-ground { fill: #17191c; }
    .mla-grid { stroke: #2f3338; }
    .mla-axis { stroke: #7b8187; }
    .mla-bar { fill: #6cb0ff; }
    .mla-s0 { stroke: #6cb0ff; } .mla-s1 { stroke: #ff9d5c; } .mla-s2 { stroke: #5fd39a; }
    .mla-s3 { stroke: #c09bff; } .mla-s4 { stroke: #ff84ad; } .mla-s5 { stroke: #d9c84a; }
  }
)css";

bool begins_character(char c) {
  return (c & 0xc0) != 0x80;
}

/// How wide the character is that this byte begins, for letters of size 1 in DejaVu Sans; others are
/// narrower.
double share_of_size(char c) {
  constexpr std::string_view narrow = " !'(),-./:;I[]fijlrt|", wide = "%+<=>@MW_mw~#&";
  if (!begins_character(c)) return 0;
  if (narrow.find(c) != narrow.npos) return 0.4;
  if (wide.find(c) != wide.npos) return 0.88;
  if (c >= 'a' && c <= 'z') return 0.61;
  return static_cast<unsigned char>(c) < 0xe3 ? 0.68 : 1;  // Chinese, Japanese, Korean and signs: wide
}

/// The text in rows, broken at spaces where possible.
std::vector<std::string> wrapped(std::string_view text, double room, double size) {
  std::vector<std::string> rows;
  while (!text.empty()) {
    const std::size_t space = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, space);
    text.remove_prefix(std::min(space + 1, text.size()));
    if (!rows.empty() && width_of(rows.back(), size) + width_of(" ", size) + width_of(word, size) <= room)
      rows.back().append(" ").append(word);
    else
      rows.emplace_back(word);
  }
  return rows;
}

}  // namespace

std::string escaped(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    const char c = text[at];
    const std::string_view character = text.substr(at, step.length);
    const bool is_forbidden = character == "\xEF\xBF\xBE" || character == "\xEF\xBF\xBF";  // in XML
    if (step.kind != Utf8Step::valid || is_forbidden)
      out += utf8_replacement;
    else if (step.length > 1)
      out += character;
    else if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c < ' ' ? ' ' : c;
    at += step.length;
  }
  return out;
}

double width_of(std::string_view text, double size) {
  double shares = 0;
  for (const char c : text) shares += share_of_size(c);
  return size * shares;
}

std::string shortened(std::string_view text, double room, double size) {
  if (width_of(text, size) <= room) return std::string(text);
  while (!text.empty() && width_of(text, size) + size > room) {
    std::size_t end = text.size() - 1;
    while (end > 0 && !begins_character(text[end])) --end;
    text = text.substr(0, end);
  }
  return std::string(text) + "…";
}

std::string number(double value, int decimals) {
  if (std::abs(value) >= 1e9 || decimals > 6) return fmt::format("{:.4g}", value);
  std::string text = fmt::format("{:.{}f}", std::abs(value), decimals);
  for (auto at = static_cast<std::int64_t>(std::min(text.find('.'), text.size())) - 3; at > 0; at -= 3)
    text.insert(static_cast<std::size_t>(at), ",");
  const bool is_zero = text.find_first_not_of("0.") == text.npos;
  return value < 0 && !is_zero ? "\u2212" + text : text;
}

int decimals_of(const std::vector<double>& values) {
  double least = 0, most = 0;
  for (const double value : values) {
    const double size = std::abs(value);
    if (size > 0) least = least > 0 ? std::min(least, size) : size;
    most = std::max(most, size);
  }
  if (most == 0) return 0;
  const double digits = std::max(3 - std::floor(std::log10(most)), 1 - std::floor(std::log10(least)));
  int decimals = static_cast<int>(std::clamp(digits, 0.0, 6.0));
  const auto ends_in_zero = [&](double value) { return number(value, decimals).back() == '0'; };
  while (decimals > 0 && std::ranges::all_of(values, ends_in_zero)) --decimals;
  return decimals;
}

void require_drawable(double value, std::string_view what) {
  require(std::abs(value) < 1e300, "chart: {}: found {}, expected a number between -1e300 and 1e300", what,
          value);
}

Svg::Svg(std::string_view title) : title_(title), title_end_(margin) {
  for (const std::string& row : wrapped(title, width - 2 * margin, title_size)) {
    title_end_ += title_row;
    text(margin, title_end_ - 5, shortened(row, width - 2 * margin, title_size), Anchor::start, "mla-title");
  }
}

void Svg::text(double x, double y, std::string_view words, Anchor anchor, std::string_view classes) {
  if (words.empty()) return;
  constexpr std::string_view anchors[] = {"", " text-anchor=\"middle\"", " text-anchor=\"end\""};
  add("<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\"{}>{}</text>\n", classes, x, y,
      anchors[static_cast<int>(anchor)], escaped(words));
}

void Svg::line(std::string_view classes, double x1, double y1, double x2, double y2) {
  add("<line class=\"{}\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", classes, x1, y1, x2,
      y2);
}

std::string Svg::finish(double height) const {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"mla-chart\" role=\"img\" viewBox=\"0 0 {0} "
      "{1:.0f}\" "
      "width=\"{2:.0f}\" height=\"{3:.0f}\">\n<title>{4}</title>\n<style>{5}</style>\n"
      "<rect class=\"mla-ground\" width=\"{0}\" height=\"{1:.0f}\"/>\n{6}</svg>\n",
      width, height, enlarged * width, enlarged * height, escaped(title_), style, body_);
}

}  // namespace mla::chart
