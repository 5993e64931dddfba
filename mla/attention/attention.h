#pragma once
#include <cstdint>

#include "mla/cache/kv_view.h"
#include "mla/core/buffer.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// All that an attention kernel is told about a variant. MHA: h_kv = h_q. GQA: fewer. MQA: one. Explicit MLA
/// is MHA with d_qk = d_n + d_r; absorbed MLA is MQA with d_qk = d_c + d_r and d_v = d_c, its values the
/// first part of its keys.
struct AttentionShape {
  std::int64_t h_q = 0;   ///< query heads, a multiple of h_kv
  std::int64_t h_kv = 0;  ///< kv heads; query head h reads kv head h / (h_q / h_kv)
  std::int64_t d_qk = 0;
  std::int64_t d_v = 0;
  float scale = 1.0f;  ///< multiplies q . k before the softmax
  bool causal =
      true;  ///< aligned to the bottom right: the last query sees every row, the one before all but one, ...
};

/// Queries of consecutive tokens: token t's head h is at data + t * token_stride + h * head_stride, d_qk
/// values.
struct QueryView {
  const float* data = nullptr;
  std::int64_t tokens = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

/// Attention of one sequence, part by part: softmax(scale * q k^T) v with the online softmax (Milakov &
/// Gimelshein 2018), so that no score matrix exists. Rows are taken in splits of `split_rows`, counted from
/// the sequence's first row; each split is summed by itself and the splits are merged in order. Neither the
/// number of threads, nor the pages, nor which other queries ride along changes a bit of a query's result.
class OnlineAttention {
 public:
  static constexpr std::int64_t split_rows = 256;

  /// Attention of `queries` over `kv_length` rows in all. `out` [tokens][h_q][d_v] is written by finish() and
  /// is used as working memory before. Throws Error for a shape that is not one. `leaf`: the kernels to use.
  OnlineAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length, float* out,
                  const LeafKernels& leaf = leaf_kernels());

  /// Attends to rows [first_row, first_row + part.length), `part`'s row 0 being first_row. Parts come in
  /// order and each but the last ends at a multiple of split_rows.
  void add(const KvView& part, std::int64_t first_row);

  /// Divides by the sums. `lse` [tokens][h_q], unless null, gets the natural log of the sum of exp(scaled
  /// scores); a query that sees no row gets output 0 and lse +inf.
  void finish(float* lse);

 private:
  struct Item;     // one query token and up to 16 heads that share a kv head
  struct Partial;  // the sums of one split
  Item item(std::int64_t index) const;
  std::int64_t visible_rows(std::int64_t token) const;
  void attend_split(const Item& item, const KvView& part, std::int64_t first_row, std::int64_t split,
                    Partial out) const;
  void merge(const Item& item, const Partial& partial);

  AttentionShape shape_;
  QueryView queries_;
  std::int64_t kv_length_;
  const LeafKernels& leaf_;
  std::int64_t group_;       // query heads per kv head
  std::int64_t blocks_;      // head blocks per kv head
  Buffer<float> max_, sum_;  // [tokens][h_q]
  float* acc_;               // [tokens][h_q][d_v]
};

/// The whole of it in one call: out [tokens][h_q][d_v], lse [tokens][h_q] or null.
void attend(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out, float* lse,
            const LeafKernels& leaf = leaf_kernels());

}  // namespace mla
