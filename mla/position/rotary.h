#pragma once
#include <cstdint>
#include <vector>

#include "mla/core/tensor.h"
#include "mla/position/rope_spec.h"

namespace mla {

/// Rotary position embedding (Su et al. 2021, "RoFormer", equation 34): pair i of a head is turned by the
/// angle position * frequency[i]. Scores of two rotated vectors depend on the distance of their positions
/// only. (Chapter: RoPE, and the decoupled architecture, where only d_r values of a head are rotated.)
class Rotary {
 public:
  /// Frequencies for conversations of up to `max_length` tokens. Only longrope looks at it: its long factors
  /// serve conversations that may outgrow original_context, from their first token on, so that every cached
  /// key of one conversation is turned by the same frequencies. A dim of 0 turns nothing. Throws Error if dim
  /// is odd or negative or a factor list has the wrong length.
  Rotary(const RopeSpec& spec, std::int64_t max_length);

  std::int64_t dim() const { return spec_.dim; }
  const std::vector<float>& frequencies() const { return frequencies_; }

  /// Cosines and sines, [positions, dim/2] each, of positions [first, first + count).
  struct Table {
    Buffer<float> cos, sin;
  };
  void fill(std::int64_t first, std::int64_t count, Table& table) const;

  /// Turns one vector of `dim` values in place by row `row` of a table.
  void rotate(const Table& table, std::int64_t row, float* x) const;
  /// The gradient by x from that by rotate's result, in place: turned back, times attention_factor once more.
  void rotate_back(const Table& table, std::int64_t row, float* d_x) const;

 private:
  void turn(const float* cos, const float* sin, float sign, float* x) const;

  RopeSpec spec_;
  std::vector<float> frequencies_;  // [dim/2], radians per token
};

/// theta^(-2i/dim), i in [0, dim/2), after the spec's scaling.
/// YaRN: Peng et al. 2023, section 3.2 ("NTK-by-parts"); longrope: Ding et al. 2024, "LongRoPE", equation 2;
/// llama3: transformers' modeling_rope_utils.py (`_compute_llama3_parameters`).
std::vector<float> rope_frequencies(const RopeSpec& spec, std::int64_t max_length);

}  // namespace mla
