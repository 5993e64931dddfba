#pragma once
#include <algorithm>
#include <cstdint>
#include <span>

#include "mla/attention/shape.h"
#include "mla/cache/kv_view.h"
#include "mla/kernels/attend.h"

namespace mla {

/// The work of one sequence's attention, cut into items and splits that may be done anywhere in any order:
/// this class says what is computed, AttentionSchedule by whom. An item is up to 128 query rows (a head of a
/// token each) that share a kv head; a split is a run of rows, counted from the sequence's first. Each split
/// is summed by itself and the splits are folded in a fixed order, so that a query's bits depend on its own
/// rows alone.
class SequenceAttention {
 public:
  struct Item {
    std::int64_t index, kv_head;
    std::int64_t first;  // query row of this kv head, in the order of place()
    QueryKinds kinds;    // of the item's query rows
  };

  /// How the work is cut.
  struct Cut {
    std::int64_t split_rows;  ///< a multiple of AttendRows::max_count
    std::int64_t block_rows;  ///< of one call of the kernel, at most AttendRows::max_count, a multiple of 16
    std::int64_t item_queries;  ///< a multiple of 8, at most AttendQueries::max_count
    bool many_tokens = false;   ///< AttentionSequence::many_tokens
  };
  SequenceAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length, float* out,
                    const Cut& cut);

  const AttentionShape& shape() const { return shape_; }
  std::int64_t items() const { return items_; }
  Item item(std::int64_t index) const;
  /// Query rows of an item, at most.
  std::int64_t item_rows() const { return std::min(cut_.item_queries, queries_.tokens * group_); }
  std::int64_t query_rows() const { return queries_.tokens * shape_.h_q; }
  std::int64_t split_rows() const { return cut_.split_rows; }
  std::int64_t splits(const KvView& part) const {
    return (part.length + cut_.split_rows - 1) / cut_.split_rows;
  }
  std::int64_t state_bytes() const { return state_bytes_; }  ///< of one split of an item
  std::int64_t kv_length() const { return kv_length_; }
  /// Of an item with one cached row.
  std::int64_t multiply_adds_per_row() const;

  /// Which kernel to use.
  void use(const AttendKernel& kernel);
  const AttendKernel* kernel() const { return kernel_; }
  /// Memory for the running sums: two numbers for each query row.
  void set_sums(float* sums);
  /// Where finish() is to have written the largest scaled score of each query row, [tokens][h_q]; -inf if it
  /// sees no row.
  void set_largest(float* largest);

  std::int64_t packed_bytes() const { return packed_bytes_; }  ///< of an item's queries
  void pack(const Item& item, std::byte* packed) const;
  /// The most items that are done together.
  static constexpr std::int64_t most_together = 128;
  /// Items that are done together, rows block by row block: few queries of each kv head, so that rows are
  /// read once in the order of memory.
  std::int64_t items_together() const;
  /// Sums of one split, from nothing, of items [first, first + items_together()): part's row 0 is row
  /// `first_row` of the sequence. The same thread goes on with the rows behind the split up to `end_row` of
  /// the part. `packed` and `states` have one item's after another's.
  void attend_split(std::int64_t first_item, const std::byte* packed, const KvView& part,
                    std::int64_t first_row, std::int64_t split, std::int64_t end_row,
                    std::byte* states) const;
  /// The sums of the item's query i over all that was folded into them.
  AttendSums sums(const Item& item, std::int64_t i) const;
  /// Adds the sums of a split, or of two, to others of the item's queries; `second` may be null.
  void fold(const Item& item, const std::byte* first, const std::byte* second, const AttendSums* into) const;
  /// Adds a query's sums over later rows to those over earlier ones.
  void join(const AttendSums& from, const AttendSums& into) const;
  /// Divides by the sums; see OnlineAttention::finish.
  void finish(const Item& item, std::int64_t first, std::int64_t count, float* lse) const;

 private:
  struct Place {
    std::int64_t token, head;
  };
  Place place(std::int64_t kv_head, std::int64_t i) const;
  std::int64_t sums_row(const Item& item, std::int64_t i) const;
  void raise_largest(const Item& item, const float* largest) const;
  std::int64_t visible_rows(std::int64_t token) const;
  AttendQueries queries_of(const Item& item, const std::byte* packed) const;
  void attend_rows(const Item& item, const std::byte* packed, const KvView& part, std::int64_t first_row,
                   std::int64_t begin, std::int64_t end, std::int64_t ahead, std::span<const Lines> lines,
                   std::byte* state) const;
  std::size_t list_ahead(const Item& item, std::int64_t i, const KvView& part, std::int64_t first,
                         std::int64_t count, Lines* lines) const;
  void attend_together(std::int64_t first_item, const std::byte* packed, const KvView& part,
                       std::int64_t first_row, std::int64_t begin, std::int64_t end, std::int64_t end_row,
                       std::byte* states) const;

  AttentionShape shape_;
  QueryView queries_;
  std::int64_t kv_length_;
  Cut cut_;
  const AttendKernel* kernel_ = nullptr;
  std::int64_t group_;   // query heads per kv head
  QueryKinds kinds_;     // of one token's heads
  std::int64_t blocks_;  // items per kv head
  std::int64_t items_;
  std::int64_t packed_bytes_ = 0;
  std::int64_t state_bytes_ = 0;
  float* max_ = nullptr;      // [tokens][h_q]
  float* sum_ = nullptr;      // [tokens][h_q]
  float* acc_;                // [tokens][h_q][d_v]
  float* largest_ = nullptr;  // [tokens][h_q], or null
};

}  // namespace mla
