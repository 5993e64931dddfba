#pragma once
// Gradients against central differences of a forward in double.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "mla/train/parameters.h"
#include "support/oracle.h"

namespace mla::test {

/// A matrix as f32, as the library sees it, the same numbers in double, for the slow forward, and a gradient.
struct Tensor {
  Tensor() = default;
  Tensor(std::int64_t rows_, std::int64_t cols_, Random& random, double scale = 1.0)
      : rows(rows_),
        cols(cols_),
        values(random.values(rows_ * cols_, scale)),
        gradient(values.size(), 0.0f),
        exact(values.begin(), values.end()) {}

  double at(std::int64_t r, std::int64_t c) const { return exact[static_cast<std::size_t>(r * cols + c)]; }
  MatrixView<float> view() { return {values.data(), rows, cols}; }
  MatrixView<const float> view() const { return {values.data(), rows, cols}; }
  MatrixView<float> gradient_view() { return {gradient.data(), rows, cols}; }
  Trained trained() { return {view(), gradient_view()}; }

  /// Checks that `gradient` is that of loss(), which reads `exact`: |difference| <= tolerance * |gradient| +
  /// floor, over all elements together. The differences are off by step^2 of the third derivative and 1e-16 /
  /// step of the loss: about 1e-9.
  template <class Loss>
  void expect_gradient(const Loss& loss, double tolerance, const std::string& what, double floor = 1e-8) {
    constexpr double step = 1e-5;
    double error = 0, size = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const double value = exact[i];
      exact[i] = value + step;
      const double above = loss();
      exact[i] = value - step;
      const double below = loss();
      exact[i] = value;
      const double expected = (above - below) / (2 * step);
      error += std::pow(static_cast<double>(gradient[i]) - expected, 2);
      size += expected * expected;
    }
    EXPECT_LE(std::sqrt(error), tolerance * std::sqrt(size) + floor) << what << ": size " << std::sqrt(size);
  }

  std::int64_t rows = 0, cols = 0;
  std::vector<float> values, gradient;
  std::vector<double> exact;
};

/// sum of a[i] * b[i].
inline double inner(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace mla::test
