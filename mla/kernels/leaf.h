#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/cpu.h"
#include "mla/core/dtype.h"

namespace mla {

/// The largest of some scaled values, and the sum of exp(each - that): together their log-sum-exp.
struct ExpSum {
  float top, sum;
};

/// The leaf kernels of one instruction set. They use one thread, allocate nothing and never fail; any count
/// may be 0 unless said otherwise, and no pointer needs an alignment beyond its element's.
struct LeafKernels {
  Isa isa;
  /// out[i] = x[i] * weight[i] / sqrt(mean(x^2) + epsilon).  out may be x.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, float* out, std::int64_t n);
  /// out[i] = silu(gate[i]) * up[i], silu(t) = t / (1 + exp(-t)).  out may be gate or up.
  void (*swiglu)(const float* gate, const float* up, float* out, std::int64_t n);
  /// y[i] += scale * x[i].
  void (*add_scaled)(const float* x, float scale, float* y, std::int64_t n);
  /// f32 from bf16 (exact).
  void (*bf16_to_f32)(const bf16* x, float* out, std::int64_t n);
  /// bf16 from f32, to nearest, ties to even; a NaN stays a NaN.
  void (*f32_to_bf16)(const float* x, bf16* out, std::int64_t n);
  /// f32 from f16 (exact); a NaN stays a NaN.
  void (*f16_to_f32)(const std::uint16_t* x, float* out, std::int64_t n);
  /// The value of an e4m3 code times `scale`, in f32.
  void (*f8_to_f32)(const std::uint8_t* codes, float scale, float* out, std::int64_t n);
  /// codes[i] * scale.
  void (*i8_to_f32)(const std::int8_t* codes, float scale, float* out, std::int64_t n);
  /// sum of a[i] * b[i].
  float (*dot)(const float* a, const float* b, std::int64_t n);
  /// Of rms_norm, given the gradient of its output: d_x[i] += and d_weight[i] +=.
  void (*rms_norm_backward)(const float* x, const float* weight, float epsilon, const float* d_out,
                            float* d_x, float* d_weight, std::int64_t n);
  /// Of swiglu, given the gradient of its output: writes d_gate and d_up, which may be gate and up.
  void (*swiglu_backward)(const float* gate, const float* up, const float* d_out, float* d_gate, float* d_up,
                          std::int64_t n);
  /// Over scale * x[i]; n is at least 1.
  ExpSum (*exp_sum)(const float* x, float scale, std::int64_t n);
  /// out[i] = factor * exp(scale * x[i] - top) / sum.  out may be x.
  void (*softmax)(const float* x, float scale, ExpSum exp_sum, float factor, float* out, std::int64_t n);
};

/// The kernels of `isa`. REQUIRES supports(isa).
const LeafKernels& leaf_kernels(Isa isa);

/// The kernels of selected_isa().
const LeafKernels& leaf_kernels();

// One definition per instruction-set file.
extern const LeafKernels scalar_kernels;
extern const LeafKernels avx2_kernels;
extern const LeafKernels avx512_kernels;
extern const LeafKernels avx512_bf16_kernels;  // the same ones: what differs is not in this table

}  // namespace mla
