#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// How many of a block's query rows are summed in groups of eight, four, two and one, in this order. Which
/// kind a query row belongs to depends on its head alone, and on whether the call has many tokens
/// (SequenceAttention::place), and a kernel may round differently in each kind; it may also take them all
/// alike.
struct QueryKinds {
  std::int64_t eights = 0, fours = 0, twos = 0, ones = 0;
  std::int64_t count() const { return eights + fours + twos + ones; }
};

/// Query rows (one head of one token each) that share a kv head.
struct AttendQueries {
  static constexpr std::int64_t max_count = 128;

  const void* packed;  ///< by AttendKernel::pack
  QueryKinds kinds;    ///< count() is 1 to max_count
  std::int64_t d_qk;
  std::int64_t d_v;
  float scale;  ///< multiplies each score before the softmax
};

struct Fp8Rows;

/// Neighbouring lines of 64 bytes.
struct Lines {
  const std::byte* first;
  std::int64_t count;
};

/// Cached rows, in runs of four that lie `row_stride` bytes apart, so that few pointers reach many rows
/// whatever the pages are. The last run of all may end in rows that do not exist: they can be read, are zero,
/// and no query sees them.
struct AttendRows {
  static constexpr std::int64_t max_count = 512;
  static constexpr std::int64_t run = 4;

  const std::byte* const* runs;  ///< [ceil((count + ahead) / run)] first row of each, in order of position
  std::int64_t row_stride;       ///< bytes
  std::int64_t count;            ///< 1 to max_count
  std::int64_t ahead;            ///< rows that this thread will attend to next, to be fetched meanwhile
  /// [queries] how many of the rows each query sees; at least one query sees some. Does not fall from query
  /// to query of one kind.
  const std::int32_t* visible;
  std::int64_t key_offset;    ///< bytes from a row's start to its key
  std::int64_t value_offset;  ///< bytes from a row's start to its value
  /// Further memory to be fetched meanwhile, for other queries of this thread: a list that ends with lines
  /// without end, or null.
  const Lines* lines_ahead = nullptr;
  std::int64_t num_lines_ahead = 0;
  /// For bf16_pair_attend: the rows are not there yet, up to 256 that lie one after another in memory from
  /// runs[0] on, and this is what they are to be made of. Null if they are.
  const Fp8Rows* unmade = nullptr;
  /// [queries] raised to the largest scaled score of the rows that each query sees, by kernels of base two
  /// but int8_attend; or null. (The others' AttendSums::max is that.)
  float* largest = nullptr;
};

/// What all rows so far come to for one query: softmax(scale q k^T) v of those rows is acc / sum.
struct AttendSums {
  /// Largest scaled score, of kernels of base two some number near it; if nothing was visible, -inf or the
  /// lowest float.
  float* max;
  float* sum;  ///< sum of exp(scaled score - max); 0 if nothing was visible, and then acc may be anything
  float* acc;  ///< [d_v] sum of exp(scaled score - max) * value
};

/// A way to attend: begin, attend to up to 512 rows at a time in order, fold the sums into others. A query's
/// result depends on its own values, its kind, the rows and what it sees of them, not on the other queries;
/// but where bf16 pairs are multiplied, a value that is no number, in rows that only other queries of the
/// call see, may show in it.
/// All memory is the caller's; `state` and `packed` are 64-byte aligned.
struct AttendKernel {
  bool base_two;  ///< max counts in powers of two: max and exp above are those of the base-2 logarithm
  /// Bytes of packed queries.
  std::int64_t (*packed_bytes)(const QueryKinds& kinds, std::int64_t d_qk, std::int64_t d_v);
  /// Packs rows[i][0..d_qk).
  void (*pack)(const float* const* rows, const QueryKinds& kinds, std::int64_t d_qk, std::int64_t d_v,
               void* packed);
  /// Bytes of the running sums.
  std::int64_t (*state_bytes)(const QueryKinds& kinds, std::int64_t d_v);
  void (*begin)(const AttendQueries& queries, void* state);
  void (*attend)(const AttendQueries& queries, const AttendRows& rows, void* state);
  /// Adds one state's sums of each query to into[0..queries), or those of two, one after the other; `second`
  /// may be null.
  void (*fold)(const AttendQueries& queries, const void* first, const void* second, const AttendSums* into);
  /// Adds one query's sums to others by the same arithmetic: fold into nothing and join are fold.
  void (*join)(const AttendSums& from, std::int64_t d_v, const AttendSums& into);
};

/// The kernel for rows of `type`: f32, bf16, f16, or latents in fp8 or int8, which are keys of d_qk values
/// whose first d_v are the value (latent_row.h with d_c = d_v). Where the CPU multiplies bf16 pairs, rows of
/// bf16 and fp8 are multiplied so: queries and the softmax's weights are rounded to bf16, sums are f32. Where
/// it multiplies bytes, int8 rows are (avx512_vnni_attend.cpp). Everything else is f32 arithmetic.
const AttendKernel& attend_kernel(DType type, const LeafKernels& leaf, std::int64_t d_v);

/// The kernel that computes in f32 from rows of `type`, whatever else the CPU can do. Rows of other types are
/// widened a tile at a time.
const AttendKernel& f32_attend_kernel(DType type, const LeafKernels& leaf);

/// Rows that a kernel of f32 rows, with vectors of `width` floats, takes scores and values of in turn: V3's
/// stay in an L2 cache of 1 MiB, or where there are only 256 bits, of half as much.
constexpr std::int64_t f32_tile_rows(std::int64_t width) {
  return width == 8 ? 96 : 180;
}

// The kernels of f32 rows, in the instruction-set files.
extern const AttendKernel avx2_f32_attend;
extern const AttendKernel avx512_f32_attend;

/// AttendKernel::join of the kernels of f32 arithmetic.
void join_sums(const AttendSums& from, std::int64_t d_v, const AttendSums& into);

// These REQUIRE supports(Isa::avx512_bf16).

/// The bf16-pair kernel, in avx512_bf16_attend.cpp.
extern const AttendKernel bf16_pair_attend;

/// fp8 latents through it.
extern const AttendKernel fp8_attend;

/// int8 latents by products of bytes. Queries are rounded to 8 bits, their rotated part to bf16, weights to 8
/// bits; max counts in powers of two and lies near the largest score less 1 / scale of its row. REQUIRES d_v
/// of at most int8_widest: wider sums would not fit.
extern const AttendKernel int8_attend;
constexpr std::int64_t int8_widest = 512;

}  // namespace mla
