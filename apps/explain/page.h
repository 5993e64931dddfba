#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <variant>
#include <vector>

#include "mla/chart/bar_chart.h"
#include "mla/chart/heat_map.h"
#include "mla/chart/line_chart.h"
#include "mla/chart/scatter_chart.h"

// What a topic of `mla explain` says, once: the terminal, the site and --json are three ways to show it.

namespace mla::app {

/// Text; what stands between backticks is code.
struct Paragraph {
  std::string text;
};

/// A formula in lines of its own, in plain Unicode.
struct Formula {
  std::string text;
};

/// A listing, line by line, of at most 78 columns.
struct Code {
  std::string text;
};

struct Table {
  std::vector<std::string> heads;
  std::vector<std::vector<std::string>>
      rows;  ///< as many cells each as heads; columns of numbers are set right
};

/// Whether a column holds words: then it is set left. The first does, and any with a cell that begins with a
/// letter.
bool is_of_words(const Table& table, std::size_t column);

/// Boxes in a row whose widths are to scale: the vectors and matrices of a step.
struct Box {
  std::string name;        ///< none: nothing is written below it
  std::int64_t width = 0;  ///< what is drawn to scale
  std::string note;        ///< below the name: a shape, a norm
};
struct BoxRow {
  std::string label;
  std::vector<Box> boxes;
};
struct Boxes {
  std::string title;
  std::vector<BoxRow> rows;
};

struct Picture {
  std::variant<LineChart, BarChart, HeatMap, ScatterChart, Boxes> chart;
  std::string caption;
  bool only_in_html = false;  ///< too fine for letters
};

/// A value to choose in the page, and bars that follow it. `script` is the body of a JavaScript function of
/// (x, data) that returns [{name, value, text}], one for each bar; `stops` shows some of the same in a
/// terminal, computed by the library.
struct Slider {
  std::string id;  ///< one word, unlike any other of the page
  std::string label;
  double low = 0, high = 1, step = 1, start = 0;
  std::string shown;  ///< JavaScript expression of x for what stands beside the slider
  nlohmann::ordered_json data;
  std::string script;
  Table stops;
};

/// A claim that the run has checked.
struct Check {
  std::string claim;
  bool holds = false;
  std::string evidence;  ///< the numbers that decide
};

/// A function that does what the topic tells of.
struct CodePlace {
  std::string file;      ///< "mla/attention/mla.cpp"
  std::string function;  ///< a word of the file: "absorb_queries"
};

using Block = std::variant<Paragraph, Formula, Code, Table, Picture, Slider, Check>;

/// One topic, told.
struct Page {
  std::vector<Block> blocks;
  nlohmann::ordered_json numbers;  ///< for --json: what is shown, by name
  std::vector<CodePlace> code;

  void say(std::string text) { blocks.push_back(Paragraph{std::move(text)}); }
  void formula(std::string text) { blocks.push_back(Formula{std::move(text)}); }
  void table(Table table) { blocks.push_back(std::move(table)); }
  void picture(Picture picture) { blocks.push_back(std::move(picture)); }
  void check(std::string claim, bool holds, std::string evidence) {
    blocks.push_back(Check{std::move(claim), holds, std::move(evidence)});
  }
};

/// Whether all its claims hold. REQUIRES a page that checks something.
bool holds(const Page& page);

}  // namespace mla::app
