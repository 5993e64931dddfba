#include "mla/position/rotary.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "mla/core/error.h"

namespace mla {
namespace {

/// The pair index (fractional) whose wavelength fits `rotations` times into the original context.
double correction_dim(const RopeSpec& spec, double rotations) {
  const auto context = static_cast<double>(spec.original_context);
  return static_cast<double>(spec.dim) * std::log(context / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(spec.theta));
}

/// 1 where a pair keeps its frequency, 0 where it is divided by the factor, a ramp between.
std::vector<double> yarn_keep(const RopeSpec& spec) {
  double low = correction_dim(spec, spec.beta_fast);
  double high = correction_dim(spec, spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(spec.dim - 1));
  if (low == high) high += 0.001;
  std::vector<double> keep(static_cast<std::size_t>(spec.dim / 2));
  for (std::size_t i = 0; i < keep.size(); ++i) {
    keep[i] = 1 - std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
  }
  return keep;
}

/// Frequencies of few rotations in the original context are divided by the factor, those of many are kept, a
/// ramp between.
void stretch_llama3(const RopeSpec& spec, std::vector<double>& frequencies) {
  for (double& frequency : frequencies) {
    const double rotations = static_cast<double>(spec.original_context) * frequency / (2 * std::numbers::pi);
    const double keep = std::clamp(
        (rotations - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor), 0.0, 1.0);
    frequency *= keep + (1 - keep) / spec.factor;
  }
}

}  // namespace

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

std::vector<float> rope_frequencies(const RopeSpec& spec, std::int64_t max_length) {
  require(spec.dim >= 0 && spec.dim % 2 == 0, "rotary: found dim {}, expected an even number from 0",
          spec.dim);
  const auto pairs = static_cast<std::size_t>(spec.dim / 2);
  std::vector<double> exact(pairs);
  for (std::size_t i = 0; i < pairs; ++i) {
    exact[i] = std::pow(spec.theta, -2.0 * static_cast<double>(i) / static_cast<double>(spec.dim));
  }
  if (spec.scaling == RopeScaling::yarn) {
    const std::vector<double> keep = yarn_keep(spec);
    for (std::size_t i = 0; i < pairs; ++i) exact[i] *= keep[i] + (1 - keep[i]) / spec.factor;
  }
  if (spec.scaling == RopeScaling::llama3) stretch_llama3(spec, exact);
  if (spec.scaling == RopeScaling::longrope) {
    const std::vector<double>& divisors =
        max_length > spec.original_context ? spec.long_factor : spec.short_factor;
    require(divisors.size() == pairs, "rotary: found {} longrope factors, expected {}", divisors.size(),
            pairs);
    for (std::size_t i = 0; i < pairs; ++i) exact[i] /= divisors[i];
  }
  return {exact.begin(), exact.end()};
}

Rotary::Rotary(const RopeSpec& spec, std::int64_t max_length)
    : spec_(spec), frequencies_(rope_frequencies(spec, max_length)) {}

void Rotary::fill(std::int64_t first, std::int64_t count, Table& table) const {
  const std::int64_t pairs = spec_.dim / 2;
  table.cos.resize(count * pairs);
  table.sin.resize(count * pairs);
  for (std::int64_t t = 0; t < count; ++t) {
    for (std::int64_t i = 0; i < pairs; ++i) {
      // The angle is rounded to f32, as wherever these models were trained; its cosine is not.
      const double angle = static_cast<float>(first + t) * frequencies_[static_cast<std::size_t>(i)];
      table.cos[t * pairs + i] = static_cast<float>(std::cos(angle) * spec_.attention_factor);
      table.sin[t * pairs + i] = static_cast<float>(std::sin(angle) * spec_.attention_factor);
    }
  }
}

void Rotary::rotate(const Table& table, std::int64_t row, float* x) const {
  turn(table.cos.data() + row * (spec_.dim / 2), table.sin.data() + row * (spec_.dim / 2), 1.0f, x);
}

void Rotary::rotate_back(const Table& table, std::int64_t row, float* d_x) const {
  turn(table.cos.data() + row * (spec_.dim / 2), table.sin.data() + row * (spec_.dim / 2), -1.0f, d_x);
}

void Rotary::turn(const float* cos, const float* sin, float sign, float* x) const {
  const std::int64_t pairs = spec_.dim / 2;
  const bool interleaved = spec_.layout == RopeLayout::interleaved;
  for (std::int64_t i = 0; i < pairs; ++i) {
    float& a = x[interleaved ? 2 * i : i];
    float& b = x[interleaved ? 2 * i + 1 : i + pairs];
    const float turned_a = a * cos[i] - b * (sign * sin[i]);
    const float turned_b = a * (sign * sin[i]) + b * cos[i];
    a = turned_a;
    b = turned_b;
  }
}

}  // namespace mla
