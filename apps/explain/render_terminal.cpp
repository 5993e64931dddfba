#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "apps/explain/render.h"
#include "mla/core/utf8.h"

namespace mla::app {
namespace {

constexpr std::int64_t columns = 80;

/// Columns that a text takes: one for each character.
std::int64_t columns_of(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; });
}

std::string times(std::string_view text, std::int64_t count) {
  std::string out;
  for (std::int64_t i = 0; i < count; ++i) out += text;
  return out;
}

std::string padded(const std::string& text, std::int64_t width, bool to_the_right) {
  const std::string space(static_cast<std::size_t>(std::max<std::int64_t>(0, width - columns_of(text))), ' ');
  return to_the_right ? space + text : text + space;
}

/// `text` broken at spaces, each line behind `indent`.
std::string wrapped(std::string_view text, const std::string& indent) {
  std::string out, line = indent;
  bool is_empty = true;
  while (!text.empty()) {
    const std::size_t space = std::min(text.find(' '), text.size());
    const std::string_view word = text.substr(0, space);
    text.remove_prefix(std::min(space + 1, text.size()));
    if (!is_empty && columns_of(line) + 1 + columns_of(word) > columns) {
      out += line + "\n";
      line = indent;
      is_empty = true;
    }
    if (!is_empty) line += ' ';
    line += word;
    is_empty = false;
  }
  return out + line + "\n";
}

/// Colours, or none.
struct Colours {
  bool on;
  std::string bold(std::string_view text) const { return paint("1", text); }
  std::string quiet(std::string_view text) const { return paint("2", text); }
  std::string green(std::string_view text) const { return paint("32;1", text); }
  std::string red(std::string_view text) const { return paint("31;1", text); }
  std::string blue(std::string_view text) const { return paint("34", text); }

 private:
  std::string paint(const char* code, std::string_view text) const {
    return on ? fmt::format("\033[{}m{}\033[0m", code, text) : std::string(text);
  }
};

std::string indented(std::string_view text, const Colours& colours) {
  std::string out;
  while (true) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    out += "    " + colours.bold(text.substr(0, end)) + "\n";
    if (end == text.size()) return out;
    text.remove_prefix(end + 1);
  }
}

std::string render(const Table& table, const Colours& colours) {
  std::vector<std::int64_t> widths;
  for (std::size_t c = 0; c < table.heads.size(); ++c) {
    std::int64_t width = columns_of(table.heads[c]);
    for (const auto& row : table.rows) width = std::max(width, columns_of(row[c]));
    widths.push_back(width);
  }
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string out = "  ";
    for (std::size_t c = 0; c < cells.size(); ++c)
      out += padded(cells[c], widths[c], !is_of_words(table, c)) + (c + 1 < cells.size() ? "  " : "");
    while (out.ends_with(' ')) out.pop_back();
    return out;
  };
  std::string out = colours.bold(line(table.heads)) + "\n";
  for (const auto& row : table.rows) out += line(row) + "\n";
  return out;
}

// ---------------------------------------------------------------- pictures in letters

/// Eighths of a block, left to right.
std::string bar(double share, std::int64_t width) {
  const auto eighths =
      static_cast<std::int64_t>(std::lround(std::clamp(share, 0.0, 1.0) * 8.0 * static_cast<double>(width)));
  const char* parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  return times("█", eighths / 8) + parts[eighths % 8];
}

std::string number(double value) {
  const double size = std::abs(value);
  if (size >= 1e7 || (size > 0 && size < 1e-3)) return fmt::format("{:.3g}", value);
  if (value == std::round(value)) return fmt::format("{:.0f}", value);
  return fmt::format("{:.{}f}", value, size >= 100 ? 1 : size >= 1 ? 2 : 4);
}

std::string draw(const BarChart& chart, const Colours& colours) {
  std::int64_t names = 0;
  double most = 0;
  for (const Bar& one : chart.bars) {
    names = std::max(names, columns_of(one.name));
    most = std::max(most, one.value);
  }
  std::string out = "  " + colours.quiet(chart.title + ", " + chart.y_label) + "\n";
  for (const Bar& one : chart.bars) {
    out += "  " + padded(one.name, names, false) + " " +
           colours.blue(bar(most > 0 ? one.value / most : 0, columns - names - 18)) + " " +
           number(one.value) + "\n";
  }
  return out;
}

std::string draw(const HeatMap& map, const Colours& colours) {
  if (map.cols > 68 || map.rows > 16) return "  " + colours.quiet(map.title + ": see the page") + "\n";
  const char* shades[] = {" ", "░", "▒", "▓", "█"};
  std::int64_t names = 0;
  for (const std::string& name : map.y_names) names = std::max(names, columns_of(name));
  const std::int64_t cell = map.cols > 34 ? 1 : 2;
  std::string out = "  " +
                    colours.quiet(fmt::format("{}: from {} (blank) to {} (full)", map.title, number(map.low),
                                              number(map.high))) +
                    "\n";
  for (std::int64_t r = 0; r < map.rows; ++r) {
    out += "  " + padded(map.y_names.empty() ? "" : map.y_names[r], names, true) + " ";
    for (std::int64_t c = 0; c < map.cols; ++c) {
      const double value = map.values[r * map.cols + c];
      const double share = std::isnan(value) ? 0 : (value - map.low) / (map.high - map.low);
      out += times(shades[static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * 4))], cell);
    }
    while (out.ends_with(' ')) out.pop_back();
    out += "\n";
  }
  return out;
}

/// Series as marks on a grid of letters.
std::string draw(const LineChart& chart, const Colours& colours) {
  constexpr std::int64_t width = 60, height = 10;
  const char* marks[] = {"●", "○", "▲", "△", "■", "□"};
  double low_x = INFINITY, high_x = -INFINITY, low = INFINITY, high = -INFINITY;
  const auto place = [&](double x) { return chart.log_x ? std::log(x) : x; };
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& p : series.points) {
      if (!std::isfinite(p.y) || !std::isfinite(place(p.x))) continue;
      low_x = std::min(low_x, place(p.x)), high_x = std::max(high_x, place(p.x));
      low = std::min(low, p.y), high = std::max(high, p.y);
    }
  }
  low = chart.y_low.value_or(low), high = chart.y_high.value_or(high);
  if (!(high > low) || !(high_x > low_x)) return "";
  std::vector<std::vector<std::string>> grid(height, std::vector<std::string>(width, " "));
  for (std::size_t s = 0; s < chart.series.size(); ++s) {
    for (const ChartPoint& p : chart.series[s].points) {
      if (!std::isfinite(p.y) || !std::isfinite(place(p.x)) || p.y < low || p.y > high) continue;
      const auto x = std::lround((place(p.x) - low_x) / (high_x - low_x) * (width - 1));
      const auto y = std::lround((high - p.y) / (high - low) * (height - 1));
      grid[y][x] = marks[s % std::size(marks)];
    }
  }
  std::string out =
      "  " + colours.quiet(chart.title + ": " + chart.y_label + " over " + chart.x_label) + "\n";
  for (std::int64_t y = 0; y < height; ++y) {
    const std::string label = y == 0 ? number(high) : y == height - 1 ? number(low) : "";
    std::string line = padded(label, 10, true) + " │";
    for (const std::string& cell : grid[y]) line += cell;
    while (line.ends_with(' ')) line.pop_back();
    out += line + "\n";
  }
  const auto back = [&](double x) { return number(chart.log_x ? std::exp(x) : x); };
  out += times(" ", 11) + "└" + times("─", width) + "\n" + times(" ", 12) +
         padded(back(low_x), width / 2, false) + padded(back(high_x), width / 2, true) + "\n";
  if (chart.series.size() > 1) {
    std::string legend;
    for (std::size_t s = 0; s < chart.series.size(); ++s)
      legend += fmt::format("{}{} {}", s > 0 ? "   " : "", marks[s % std::size(marks)], chart.series[s].name);
    out += wrapped(legend, "            ");
  }
  return out;
}

std::string draw(const ScatterChart& chart, const Colours& colours) {
  Table table{{"", chart.x_label, chart.y_label}, {}};
  for (const ScatterSeries& series : chart.series) {
    for (const ScatterPoint& p : series.points) table.rows.push_back({p.name, number(p.x), number(p.y)});
  }
  return "  " + colours.quiet(chart.title) + "\n" + render(table, colours);
}

std::string draw(const Boxes& boxes, const Colours& colours) {
  std::int64_t widest = 1, labels = 0;
  for (const BoxRow& row : boxes.rows) {
    std::int64_t width = 0;
    for (const Box& box : row.boxes) width += box.width;
    widest = std::max(widest, width);
    labels = std::max(labels, columns_of(row.label));
  }
  std::string out = "  " + colours.quiet(boxes.title) + "\n";
  const double scale = 30.0 / static_cast<double>(widest);
  for (const BoxRow& row : boxes.rows) {
    std::string line = "  " + padded(row.label, labels, false) + " ", notes;
    std::int64_t used = labels + 3;
    for (const Box& box : row.boxes) {
      const auto length = std::max<std::int64_t>(1, std::lround(scale * static_cast<double>(box.width)));
      line += colours.blue(times((&box - row.boxes.data()) % 2 == 1 ? "▒" : "█", length));
      used += length;
      if (!box.name.empty())
        notes += (notes.empty() ? "" : ", ") + box.name + (box.note.empty() ? "" : " " + box.note);
    }
    const bool fits = used + 1 + columns_of(notes) <= columns;
    out += line + (fits ? " " + notes + "\n" : "\n" + wrapped(notes, times(" ", labels + 3)));
  }
  return out;
}

/// Lines set in by two columns.
std::string listing(std::string_view text) {
  std::string out = "  ";
  for (const char c : text) {
    if (out.ends_with("\n  ") && c == '\n') out.resize(out.size() - 2);
    out += c;
    if (c == '\n') out += "  ";
  }
  if (out.ends_with("\n  ")) out.resize(out.size() - 2);
  return out;
}

std::string render(const Block& block, const Colours& colours) {
  if (const auto* text = std::get_if<Paragraph>(&block)) return wrapped(text->text, "");
  if (const auto* formula = std::get_if<Formula>(&block)) return indented(formula->text, colours);
  if (const auto* code = std::get_if<Code>(&block)) return listing(code->text);
  if (const auto* table = std::get_if<Table>(&block)) return render(*table, colours);
  if (const auto* slider = std::get_if<Slider>(&block))
    return "  " + colours.quiet(slider->label) + "\n" + render(slider->stops, colours);
  if (const auto* picture = std::get_if<Picture>(&block)) {
    if (picture->only_in_html) return "";
    return std::visit([&](const auto& chart) { return draw(chart, colours); }, picture->chart);
  }
  const Check& check = std::get<Check>(block);
  const std::string mark = check.holds ? "holds" : "DOES NOT HOLD";
  std::string text = wrapped(mark + ": " + check.claim, "");
  text.replace(0, mark.size(), check.holds ? colours.green(mark) : colours.red(mark));
  return text + wrapped(check.evidence, "    ");
}

}  // namespace

std::string render_terminal(const Told& told, bool coloured) {
  const Colours colours{coloured};
  std::string out = colours.bold(fmt::format("{}  {}", told.topic->section, told.topic->title)) + "\n";
  for (const Block& block : told.page.blocks) {
    const std::string text = render(block, colours);
    if (!text.empty()) out += "\n" + text;
  }
  std::string code = "in the code:";
  for (const CodePlace& place : told.page.code)
    code +=
        fmt::format("{}{} ({})", &place == told.page.code.data() ? " " : ", ", place.function, place.file);
  return out + "\n" + wrapped(code, "");
}

}  // namespace mla::app
