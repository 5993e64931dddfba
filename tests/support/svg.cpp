#include "support/svg.h"

#include <algorithm>
#include <cctype>
#include <sstream>
#include <stdexcept>

namespace mla::test {
namespace {

/// Reads XML from left to right.
class XmlReader {
 public:
  explicit XmlReader(const std::string& text) : text_(text) {}

  std::vector<SvgElement> read() {
    element();
    while (at_ < text_.size()) expect(std::isspace(static_cast<unsigned char>(text_[at_++])), "an end");
    return std::move(elements_);
  }

 private:
  void expect(bool ok, const std::string& what) const {
    if (!ok)
      throw std::runtime_error("XML: expected " + what + " before '" +
                               text_.substr(std::min(at_, text_.size())) + "'");
  }
  bool take(const std::string& token) {
    if (text_.compare(at_, token.size(), token) != 0) return false;
    at_ += token.size();
    return true;
  }
  std::string name() {
    const std::size_t from = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '-'))
      ++at_;
    expect(at_ > from, "a name");
    return text_.substr(from, at_ - from);
  }
  /// Characters up to one that ends them.
  std::string characters(char end) {
    std::string out;
    while (at_ < text_.size() && text_[at_] != end) {
      expect(text_[at_] != '<', "no < among characters");
      const std::size_t before = out.size();
      if (take("&amp;")) out += '&';
      if (take("&lt;")) out += '<';
      if (take("&gt;")) out += '>';
      if (take("&quot;")) out += '"';
      if (out.size() > before) continue;
      expect(text_[at_] != '&', "an entity");
      out += text_[at_++];
    }
    return out;
  }
  void element() {
    expect(take("<"), "an element");
    const std::size_t index = elements_.size();
    elements_.push_back({name(), {}, ""});
    const std::string own = elements_[index].name;
    while (take(" ")) {
      const std::string attribute = name();
      expect(take("=\""), "=\"");
      const bool is_new = elements_[index].attributes.emplace(attribute, characters('"')).second;
      expect(take("\"") && is_new, "one value");
    }
    if (take("/>")) return;
    expect(take(">"), ">");
    elements_[index].text = characters('<');
    while (!take("</" + own + ">")) {
      element();
      characters('<');
    }
  }

  const std::string& text_;
  std::size_t at_ = 0;
  std::vector<SvgElement> elements_;
};

}  // namespace

std::vector<SvgElement> elements_of(const std::string& svg) {
  return XmlReader(svg).read();
}

std::vector<SvgElement> elements_of(const std::string& svg, const std::string& classes,
                                    const std::string& name) {
  std::vector<SvgElement> found;
  for (SvgElement& element : elements_of(svg)) {
    const auto own = element.attributes.find("class");
    if (own != element.attributes.end() && own->second == classes && (name.empty() || element.name == name))
      found.push_back(std::move(element));
  }
  return found;
}

std::vector<std::string> texts_of(const std::string& svg, const std::string& classes) {
  std::vector<std::string> texts;
  for (const SvgElement& element : elements_of(svg, classes, "text")) texts.push_back(element.text);
  return texts;
}

std::vector<ChartPoint> path_of(const std::string& svg, const std::string& classes) {
  std::vector<ChartPoint> points;
  for (const SvgElement& path : elements_of(svg, classes, "path")) {
    std::string places = path.attributes.at("d");
    std::replace_if(
        places.begin(), places.end(), [](char c) { return c == 'M' || c == 'L'; }, ' ');
    std::istringstream in(places);
    for (ChartPoint p; in >> p.x >> p.y;) points.push_back(p);
  }
  return points;
}

std::int64_t count(const std::string& text, const std::string& part) {
  std::int64_t found = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++found;
  return found;
}

}  // namespace mla::test
