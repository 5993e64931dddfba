#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "apps/explain/render.h"
#include "apps/explain/site_files.h"
#include "mla/chart/svg.h"
#include "mla/core/mapped_file.h"

namespace mla::app {
namespace {

using chart::escaped;

/// Escaped text, what stands between backticks as code.
std::string marked(std::string_view text) {
  std::string out;
  bool is_code = false;
  while (true) {
    const std::size_t tick = text.find('`');
    out += escaped(text.substr(0, tick));
    if (tick == text.npos) return out + (is_code ? "</code>" : "");
    out += is_code ? "</code>" : "<code>";
    is_code = !is_code;
    text.remove_prefix(tick + 1);
  }
}

std::string render(const Paragraph& text) {
  return fmt::format("<p>{}</p>\n", marked(text.text));
}

std::string render(const Formula& formula) {
  std::string out;
  for (std::string_view rest = formula.text;; out += '\n') {
    const std::size_t end = rest.find('\n');
    out += escaped(rest.substr(0, end));
    if (end == rest.npos) return fmt::format("<p class=\"formula\">{}</p>\n", out);
    rest.remove_prefix(end + 1);
  }
}

std::string render(const Code& code) {
  std::string lines;  // each escaped by itself, since `escaped` makes spaces of line ends
  std::string_view text = code.text;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines += escaped(text.substr(0, end)) + "\n";
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return fmt::format("<pre class=\"listing\" tabindex=\"0\"><code>{}</code></pre>\n", lines);
}

std::string render(const Table& table) {
  std::string out = "<div class=\"scroll\"><table><thead><tr>";
  const auto cell = [&](const char* tag, std::size_t column, const std::string& text) {
    return fmt::format("<{0}{1}>{2}</{0}>", tag, is_of_words(table, column) ? " class=\"words\"" : "",
                       marked(text));
  };
  for (std::size_t c = 0; c < table.heads.size(); ++c) out += cell("th", c, table.heads[c]);
  out += "</tr></thead><tbody>\n";
  for (const auto& row : table.rows) {
    out += "<tr>";
    for (std::size_t c = 0; c < row.size(); ++c) out += cell("td", c, row[c]);
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

// ---------------------------------------------------------------- pictures

/// Boxes as a figure of HTML: widths are shares of the widest row, with room for what is written in them.
std::string draw(const Boxes& boxes) {
  std::int64_t widest = 1;
  for (const BoxRow& row : boxes.rows) {
    std::int64_t width = 0;
    for (const Box& box : row.boxes) width += box.width;
    widest = std::max(widest, width);
  }
  std::string out =
      fmt::format("<div class=\"boxes\" role=\"img\" aria-label=\"{0}\"><p class=\"boxes-title\">{0}</p>\n",
                  escaped(boxes.title));
  for (const BoxRow& row : boxes.rows) {
    out += fmt::format("<div class=\"box-row\"><span class=\"box-label\">{}</span><div class=\"box-line\">",
                       marked(row.label));
    std::string notes;
    for (const Box& box : row.boxes) {
      out += fmt::format("<span class=\"box\" style=\"width:{:.3f}%\" title=\"{}\"></span>",
                         100.0 * static_cast<double>(box.width) / static_cast<double>(widest),
                         escaped(box.name));
      if (!box.name.empty())
        notes += fmt::format("<span><b>{}</b> {}</span>", marked(box.name), marked(box.note));
    }
    out += fmt::format("</div><div class=\"box-notes\">{}</div></div>\n", notes);
  }
  return out + "</div>";
}
std::string draw(const LineChart& chart) {
  return line_chart_svg(chart);
}
std::string draw(const BarChart& chart) {
  return bar_chart_svg(chart);
}
std::string draw(const HeatMap& chart) {
  return heat_map_svg(chart);
}
std::string draw(const ScatterChart& chart) {
  return scatter_chart_svg(chart);
}

std::string render(const Picture& picture) {
  return fmt::format("<figure>{}<figcaption>{}</figcaption></figure>\n",
                     std::visit([](const auto& chart) { return draw(chart); }, picture.chart),
                     marked(picture.caption));
}

/// JSON inside a script element: no "<" may end it early.
std::string embedded(const nlohmann::ordered_json& json) {
  std::string text = json.dump();
  for (std::size_t at = 0; (at = text.find('<', at)) != text.npos; at += 6) text.replace(at, 1, "\\u003c");
  return text;
}

std::string render(const Slider& s) {
  return fmt::format(
      "<div class=\"slider\" id=\"{0}\"><label for=\"{0}-input\">{1}: <output "
      "id=\"{0}-shown\"></output></label>"
      "<input id=\"{0}-input\" type=\"range\" min=\"{2}\" max=\"{3}\" step=\"{4}\" value=\"{5}\">"
      "<div class=\"bars\" id=\"{0}-bars\"></div></div>\n"
      "<script>slide(\"{0}\", {6}, x => {7}, (x, data) => {{ {8} }});</script>\n",
      s.id, escaped(s.label), s.low, s.high, s.step, s.start, embedded(s.data), s.shown, s.script);
}

std::string render(const Check& check) {
  return fmt::format("<div class=\"check {}\"><p><b>{}</b> {}</p><p class=\"evidence\">{}</p></div>\n",
                     check.holds ? "holds" : "fails", check.holds ? "Holds." : "Does not hold.",
                     marked(check.claim), marked(check.evidence));
}

// ---------------------------------------------------------------- pages

std::string head(std::string_view title) {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><title>{}</title><link rel=\"stylesheet\" "
      "href=\"site.css\"><link rel=\"icon\" href=\"data:,\"><script src=\"site.js\"></script></head><body>\n",
      escaped(title));
}

std::string file_of(const Topic& topic) {
  return fmt::format("{}.html", topic.name);
}

std::string topic_html(std::span<const Told> all, std::size_t index) {
  const Told& told = all[index];
  std::string out = head(told.topic->title) + "<nav><a href=\"index.html\">All topics</a>";
  if (index > 0)
    out += fmt::format(" <a rel=\"prev\" href=\"{}\">← {}</a>", file_of(*all[index - 1].topic),
                       all[index - 1].topic->name);
  if (index + 1 < all.size())
    out += fmt::format(" <a rel=\"next\" href=\"{}\">{} →</a>", file_of(*all[index + 1].topic),
                       all[index + 1].topic->name);
  out += fmt::format("</nav>\n<main><p class=\"section\">{}</p><h1>{}</h1>\n", escaped(told.topic->section),
                     escaped(told.topic->title));
  for (const Block& block : told.page.blocks)
    out += std::visit([](const auto& one) { return render(one); }, block);
  out += "<h2>In the code</h2><ul class=\"code\">\n";
  for (const CodePlace& place : told.page.code)
    out += fmt::format("<li><code>{}</code> in <code>{}</code></li>\n", escaped(place.function),
                       escaped(place.file));
  return out + fmt::format(
                   "</ul>\n<p class=\"again\">In a terminal: <code>mla explain "
                   "{}</code></p></main></body></html>\n",
                   told.topic->name);
}

std::string index_html(std::span<const Told> all) {
  std::string out =
      head("Multi-Head Latent Attention, explained by running it") +
      "<main><h1>Multi-Head Latent Attention, explained by running it</h1>\n"
      "<p>A language model remembers what it has read as keys and values, one of each per head and token, "
      "and that cache grows until it fills the machine. DeepSeek's attention keeps one short latent "
      "instead, and loses little. Each page here makes one claim about it, and every number on it was "
      "computed by the library when the page was made.</p>\n<ol class=\"topics\">\n";
  for (const Told& told : all) {
    const bool is_true = holds(told.page);
    out += fmt::format(
        "<li><span class=\"section\">{}</span> <a href=\"{}\">{}</a> <span class=\"{}\">{}</span></li>\n",
        escaped(told.topic->section), file_of(*told.topic), escaped(told.topic->title),
        is_true ? "holds" : "fails", is_true ? "holds" : "does not hold");
  }
  return out + "</ol></main></body></html>\n";
}

}  // namespace

void write_site(const std::filesystem::path& directory, std::span<const Told> all) {
  std::filesystem::create_directories(directory);
  write_text(directory / "site.css", site_css);
  write_text(directory / "site.js", site_js);
  for (std::size_t i = 0; i < all.size(); ++i)
    write_text(directory / file_of(*all[i].topic), topic_html(all, i));
  write_text(directory / "index.html", index_html(all));
}

}  // namespace mla::app
