#pragma once
#include <cstdint>
#include <span>

#include "mla/attention/sequence.h"
#include "mla/attention/shape.h"
#include "mla/cache/kv_view.h"
#include "mla/core/buffer.h"
#include "mla/kernels/attend.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// Tokens of a sequence from which on AttentionSequence::many_tokens pays.
constexpr std::int64_t many_tokens_from = 8;

/// One sequence of a batch.
struct AttentionSequence {
  QueryView queries;
  KvView kv;
  float* out;  ///< [tokens][h_q][d_v]
  float* lse;  ///< [tokens][h_q] natural log of the sum of exp(scaled scores), or null
  /// [tokens][h_q] the largest scaled score, -inf where there is none; or null. Not over rows of int8.
  float* largest = nullptr;
  /// The kernels sum up to eight query rows at a time. By default they are of one token, so that a few tokens
  /// of few heads have the bits of a token by itself; with this, of any tokens that share a kv head, which is
  /// several times as fast for many tokens of few heads, and slower for a token by itself.
  bool many_tokens = false;
};

/// softmax(scale * q k^T) v of each sequence, with the online softmax (Milakov & Gimelshein 2018), so that no
/// score matrix exists. A query that sees no row gets output 0 and lse +inf. Throws Error for a shape that is
/// not one and for rows that no kernel takes. `leaf`: the kernels to use.
///
/// Long sequences are split over the threads and merged in a fixed order: neither the number of threads, nor
/// the pages, nor which other queries and sequences ride along changes a bit of a query's result.
void attend(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            const LeafKernels& leaf = leaf_kernels());

/// The same of one sequence.
void attend(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out, float* lse,
            const LeafKernels& leaf = leaf_kernels());

/// Attention of one sequence whose rows come part by part, each part summed by itself and the parts merged in
/// order. Query rows are summed as AttentionSequence::many_tokens says, however many there are: rows that are
/// made for one call cost more than what a few tokens do with them.
class OnlineAttention {
 public:
  /// Rows of each part but the last.
  static constexpr std::int64_t part_rows = AttendRows::max_count;

  /// Attention of `queries` over `kv_length` rows in all. `out` [tokens][h_q][d_v] is written by finish() and
  /// is used as working memory before, as is `sums`, which grows if it must. Throws Error for a shape that is
  /// not one. The queries and the memory must outlive this object.
  OnlineAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length, float* out,
                  Buffer<float>& sums, const LeafKernels& leaf = leaf_kernels());

  /// Attends to rows [first_row, first_row + part.length), `part`'s row 0 being first_row. Parts come in
  /// order, are all of one row type, and each but the last has part_rows rows. Throws Error if they do not.
  void add(const KvView& part, std::int64_t first_row);

  /// Divides by the sums. `lse` as in AttentionSequence.
  void finish(float* lse);

 private:
  SequenceAttention sequence_;
  const LeafKernels& leaf_;
  std::int64_t next_row_ = 0;
};

}  // namespace mla
