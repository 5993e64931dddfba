#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/buffer.h"
#include "mla/core/tensor.h"
#include "mla/kernels/matmul.h"

namespace mla {

/// A tensor that is trained: its value, and the sum of its gradients since they were last cleared. A vector
/// is a matrix of one row.
struct Trained {
  MatrixView<float> value, gradient;

  bool empty() const { return value.data == nullptr; }
  Weight weight() const { return as_weight(value); }
  std::span<const float> vector() const { return {value.data, static_cast<std::size_t>(value.cols)}; }
};

/// Name, as in a checkpoint, and shape of a trained tensor.
struct ParameterSpec {
  std::string name;
  std::vector<std::int64_t> shape;  ///< [outputs, inputs] or [width]
};

/// All trained tensors of a model. Values lie in one array and gradients in another, in the order of the
/// specs, each tensor from a multiple of 16 floats on; the floats between two tensors are zero.
class Parameters {
 public:
  /// All values and gradients are zero. Throws Error for a shape that isn't one or two positive sizes, and
  /// for a name that comes twice.
  explicit Parameters(std::vector<ParameterSpec> specs);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  /// The tensor of that index, or of that name. Throws Error if there is none.
  Trained at(std::size_t index);
  Trained at(std::string_view name);
  bool has(std::string_view name) const;
  /// Values of all tensors together.
  std::int64_t count() const;

  std::span<float> values() { return values_.span(); }
  std::span<float> gradients() { return gradients_.span(); }
  void clear_gradients();

 private:
  std::vector<ParameterSpec> specs_;
  std::vector<std::int64_t> first_;  // of each tensor in the arrays
  Buffer<float> values_, gradients_;
};

}  // namespace mla
