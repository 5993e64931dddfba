#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// Query rows (one head of one token each) that share a kv head, against a run of cached rows: softmax(scale
/// q k^T) v of that run alone. All pointers are to memory of the caller.
struct AttendBlock {
  static constexpr std::int64_t max_queries = 128;
  static constexpr std::int64_t max_rows = 512;

  const void* queries;       ///< packed by AttendKernel::pack
  std::int64_t num_queries;  ///< 1 to max_queries
  std::int64_t num_fours;    ///< of them, the last ones, which a kernel may take in groups of four
  std::int64_t d_qk;
  std::int64_t d_v;
  float scale;                   ///< multiplies each score before the softmax
  const std::byte* const* rows;  ///< [num_rows + num_ahead] cached rows, in order of position
  std::int64_t num_rows;         ///< 1 to max_rows
  std::int64_t num_ahead;        ///< rows that this thread will attend to next, to be fetched meanwhile
  /// [num_queries] how many of the rows each query sees; at least one query sees some. Does not fall from
  /// query to query, neither in those before the fours nor in the fours.
  const std::int32_t* visible;
  std::int64_t key_offset;    ///< bytes from a row's start to its key
  std::int64_t value_offset;  ///< bytes from a row's start to its value
  float* max;                 ///< [num_queries] out: largest scaled score; -inf if nothing is visible
  float* sum;                 ///< [num_queries] out: sum of exp(scaled score - max); 0 if nothing is visible
  float* acc;                 ///< [num_queries][d_v] out: sum of exp(scaled score - max) * value
};

/// A way to attend. A query's result depends on its own values, the rows and what it sees of them, not on the
/// other queries.
struct AttendKernel {
  bool base_two;  ///< max counts in powers of two: max and exp above are those of the base-2 logarithm
  /// Bytes of `num_queries` packed queries.
  std::int64_t (*packed_bytes)(std::int64_t num_queries, std::int64_t d_qk);
  /// Packs queries[i][0..d_qk), of which the last num_fours may go in groups of four.
  void (*pack)(const float* const* queries, std::int64_t num_queries, std::int64_t num_fours,
               std::int64_t d_qk, void* packed);
  void (*attend)(const AttendBlock& block);
};

/// The kernel for rows of `type` (f32 or bf16). Rows of bf16 are multiplied as bf16 pairs where the CPU does
/// that: queries and the softmax's weights are then rounded to bf16, sums are f32. Everything else is f32
/// arithmetic through the leaf kernels.
const AttendKernel& attend_kernel(DType type, const LeafKernels& leaf);

/// The bf16-pair kernel, in avx512_bf16_attend.cpp. REQUIRES supports_bf16_products().
extern const AttendKernel bf16_pair_attend;

}  // namespace mla
