#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace mla::test {

/// Rows of numbers in double, as formulas written out have them.
using Matrix = std::vector<std::vector<double>>;

template <class T>
Matrix as_rows(const std::vector<T>& x, std::int64_t d) {
  Matrix rows;
  for (auto at = x.begin(); at != x.end(); at += d) rows.emplace_back(at, at + d);
  return rows;
}

/// Largest difference relative to the size (root mean square) of what is expected.
inline double difference(const Matrix& expected, const std::vector<float>& found) {
  double worst = 0, squares = 0;
  std::size_t i = 0;
  for (const auto& row : expected) {
    for (const double value : row) {
      const double error = std::abs(value - found[i++]);
      worst = error <= worst ? worst : error;
      squares += value * value;
    }
  }
  return worst / std::sqrt(squares / static_cast<double>(i));
}

}  // namespace mla::test
