#pragma once
#include <span>

#include "mla/core/tensor.h"

namespace mla {

/// out[t] = x[t] * weight / sqrt(mean(x[t]^2) + epsilon) for each row t (Zhang & Sennrich 2019, RMSNorm). out
/// may be x.
void rms_norm(MatrixView<const float> x, std::span<const float> weight, double epsilon,
              MatrixView<float> out);

/// y += scale * x, element by element.
void add_scaled(MatrixView<const float> x, double scale, MatrixView<float> y);

}  // namespace mla
