#include "apps/explain/vectors.h"

#include <algorithm>
#include <cmath>

#include "apps/explain/sentence.h"

namespace mla::app {

double norm(std::span<const float> x) {
  return std::sqrt(dot(x.data(), x.data(), std::ssize(x)));
}

double distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return std::sqrt(sum);
}

double cosine(std::span<const float> a, std::span<const float> b) {
  return dot(a.data(), b.data(), std::ssize(a)) / (norm(a) * norm(b));
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::abs(static_cast<double>(a[i]) - b[i]));
  return most;
}

double largest_size(std::span<const float> x) {
  double largest = 0;
  for (const float value : x) largest = std::max(largest, std::abs(static_cast<double>(value)));
  return largest;
}

std::vector<float> turned(const Rotary& rotary, std::span<const float> x, std::int64_t position) {
  std::vector<float> out(x.begin(), x.end());
  Rotary::Table table;
  rotary.fill(position, 1, table);
  rotary.rotate(table, 0, out.data());
  return out;
}

std::vector<float> turned_back(const Rotary& rotary, std::span<const float> x, std::int64_t position) {
  std::vector<float> out(x.begin(), x.end());
  Rotary::Table table;
  rotary.fill(position, 1, table);
  rotary.rotate_back(table, 0, out.data());
  return out;
}

}  // namespace mla::app
