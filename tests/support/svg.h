#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mla/chart/line_chart.h"

namespace mla::test {

struct SvgElement {
  std::string name;
  std::map<std::string, std::string> attributes;
  std::string text;  ///< up to its first child, entities as the characters they stand for

  double number(const std::string& attribute) const { return std::stod(attributes.at(attribute)); }
};

/// All elements in the order in which they begin. Throws std::runtime_error unless the text is well-formed
/// XML of one root, as far as charts use XML: no comments, declarations or single quotes.
std::vector<SvgElement> elements_of(const std::string& svg);

/// Those that have exactly these classes, of one name if it isn't "".
std::vector<SvgElement> elements_of(const std::string& svg, const std::string& classes,
                                    const std::string& name = "");

/// The texts of those elements.
std::vector<std::string> texts_of(const std::string& svg, const std::string& classes);

/// The places of a path of lines: "M1 2L3 4" as pairs.
std::vector<ChartPoint> path_of(const std::string& svg, const std::string& classes);

std::int64_t count(const std::string& text, const std::string& part);

}  // namespace mla::test
