#include "apps/explain/page.h"

#include <algorithm>

namespace mla::app {

bool holds(const Page& page) {
  for (const Block& block : page.blocks) {
    const Check* check = std::get_if<Check>(&block);
    if (check && !check->holds) return false;
  }
  return true;
}

bool is_of_words(const Table& table, std::size_t column) {
  const auto begins_with_letter = [&](const std::vector<std::string>& row) {
    const char first = (row[column] + " ")[row[column].starts_with(' ') ? 1 : 0];
    return (first >= 'a' && first <= 'z') || (first >= 'A' && first <= 'Z');
  };
  return column == 0 || std::ranges::any_of(table.rows, begins_with_letter);
}

}  // namespace mla::app
