#pragma once
#include <cstdint>

#include "mla/cache/kv_view.h"
#include "mla/core/buffer.h"
#include "mla/kernels/attend.h"
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
  static constexpr std::int64_t split_rows = AttendBlock::max_rows;

  /// Attention of `queries` over `kv_length` rows in all. `out` [tokens][h_q][d_v] is written by finish() and
  /// is used as working memory before. Throws Error for a shape that is not one. `leaf`: the kernels to use.
  /// The queries must outlive this object.
  OnlineAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length, float* out,
                  const LeafKernels& leaf = leaf_kernels());

  /// Attends to rows [first_row, first_row + part.length), `part`'s row 0 being first_row. Parts come in
  /// order, are all of one row type, and each but the last ends at a multiple of split_rows. Throws Error if
  /// they do not.
  void add(const KvView& part, std::int64_t first_row);

  /// Divides by the sums. `lse` [tokens][h_q], unless null, gets the natural log of the sum of exp(scaled
  /// scores); a query that sees no row gets output 0 and lse +inf.
  void finish(float* lse);

 private:
  struct Item;  // up to 128 query rows (a head of a token each) that share a kv head
  struct Place {
    std::int64_t token, head;
  };
  struct Partial;  // the sums of one split
  Item item(std::int64_t index) const;
  Place place(std::int64_t kv_head, std::int64_t i) const;
  Partial partial_in(float* memory) const;
  std::int64_t state_row(const Item& item, std::int64_t i) const;
  std::int64_t visible_rows(std::int64_t token) const;
  void check_part(const KvView& part, std::int64_t first_row) const;
  void pack_queries(const AttendKernel& kernel);
  void attend_split(const Item& item, const KvView& part, std::int64_t first_row, std::int64_t split,
                    std::int64_t end_row, Partial out) const;
  void merge(const Item& item, std::int64_t i, const Partial& partial);
  void add_by_items(const KvView& part, std::int64_t first_row, std::int64_t splits);
  void add_by_splits(const KvView& part, std::int64_t first_row, std::int64_t splits);

  AttentionShape shape_;
  QueryView queries_;
  std::int64_t kv_length_;
  const LeafKernels& leaf_;
  const AttendKernel* kernel_ = nullptr;  // of the first part's row type
  std::int64_t group_;                    // query heads per kv head
  std::int64_t left_over_;                // of them, those that are summed in groups of four
  std::int64_t blocks_;                   // items per kv head
  std::int64_t items_;
  std::int64_t most_queries_;       // of one item
  std::int64_t packed_stride_ = 0;  // bytes of one item's packed queries
  Buffer<std::byte> packed_;        // [items]
  Buffer<float> max_, sum_;         // [tokens][h_q]
  float* acc_;                      // [tokens][h_q][d_v]
};

/// The whole of it in one call: out [tokens][h_q][d_v], lse [tokens][h_q] or null.
void attend(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out, float* lse,
            const LeafKernels& leaf = leaf_kernels());

}  // namespace mla
