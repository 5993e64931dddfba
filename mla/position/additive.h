#pragma once
#include <cstdint>

#include "mla/core/tensor.h"

namespace mla {

/// How a model learns where a token stands: chapter 3.7 to 3.10, and rotary.
enum class PositionKind {
  rotary,   ///< queries and keys are turned (mla/position/rotary.h)
  none,     ///< chapter 3.7: it learns nothing; only the causal mask tells order
  integer,  ///< the others are added to the embedding
  binary,
  sinusoidal,
};

/// Adds to row t of `stream` the encoding of position first + t; nothing for rotary and none. `encoding` is
/// working memory. Throws Error for a negative position or a stream without columns.
void add_positions(PositionKind kind, std::int64_t first, MatrixView<float> stream, Buffer<float>& encoding);

/// Positions that are added to an embedding, the chapter's ladder up to rotary: each fills out [dim] for one
/// position. They throw Error for a negative position or a dim below 1.

/// Chapter 3.8: the position itself, in every value. Magnitudes grow without bound and drown the word.
void integer_position(std::int64_t position, std::int64_t dim, float* out);

/// Chapter 3.9: bit i of the position as value i. Bounded, each bit at its own rate, but neighbours jump.
void binary_position(std::int64_t position, std::int64_t dim, float* out);

/// Chapter 3.10: sin and cos of position / base^(2i/dim) as values 2i and 2i+1: smooth bits, and a shift of
/// the position is a rotation of each pair (Vaswani et al. 2017, "Attention Is All You Need", section 3.5).
/// An odd dim ends on a sine.
void sinusoidal_position(std::int64_t position, std::int64_t dim, float* out, double base = 10000.0);

}  // namespace mla
