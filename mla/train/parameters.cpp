#include "mla/train/parameters.h"

#include <algorithm>
#include <unordered_set>

#include "mla/core/error.h"
#include "mla/core/parts.h"

namespace mla {
namespace {

/// Floats: a cache line, and the widest vector.
constexpr std::int64_t alignment = 16;
constexpr std::int64_t most_values = std::int64_t{1} << 40;

std::int64_t values_of(const ParameterSpec& spec) {
  require(spec.shape.size() == 1 || spec.shape.size() == 2, "parameter {}: found {} sizes, expected 1 or 2",
          spec.name, spec.shape.size());
  std::int64_t count = 1;
  for (const std::int64_t size : spec.shape) {
    require(size >= 1 && size <= most_values / count,
            "parameter {}: found a size of {}, expected 1 or more and at most 2^40 values in all", spec.name,
            size);
    count *= size;
  }
  return count;
}

}  // namespace

Parameters::Parameters(std::vector<ParameterSpec> specs) : specs_(std::move(specs)) {
  std::unordered_set<std::string_view> names;
  std::int64_t total = 0;
  for (const ParameterSpec& spec : specs_) {
    require(names.insert(spec.name).second, "parameter {}: found twice, expected each name once", spec.name);
    first_.push_back(total);
    total += round_up(values_of(spec), alignment);
    require(total <= most_values, "parameters: found more than 2^40 values with {}", spec.name);
  }
  values_ = Buffer<float>(total);
  gradients_ = Buffer<float>(total);
}

Trained Parameters::at(std::size_t index) {
  require(index < specs_.size(), "parameter {}: expected an index below {}", index, specs_.size());
  const std::vector<std::int64_t>& shape = specs_[index].shape;
  const std::int64_t rows = shape.size() == 1 ? 1 : shape[0], first = first_[index];
  return {{values_.data() + first, rows, shape.back()}, {gradients_.data() + first, rows, shape.back()}};
}

Trained Parameters::at(std::string_view name) {
  const auto found = std::find_if(specs_.begin(), specs_.end(),
                                  [&](const ParameterSpec& spec) { return spec.name == name; });
  require(found != specs_.end(), "parameter {}: there is none of that name", name);
  return at(static_cast<std::size_t>(found - specs_.begin()));
}

bool Parameters::has(std::string_view name) const {
  return std::any_of(specs_.begin(), specs_.end(),
                     [&](const ParameterSpec& spec) { return spec.name == name; });
}

std::int64_t Parameters::count() const {
  std::int64_t count = 0;
  for (const ParameterSpec& spec : specs_) count += values_of(spec);
  return count;
}

void Parameters::clear_gradients() {
  std::fill_n(gradients_.data(), gradients_.size(), 0.0f);
}

}  // namespace mla
