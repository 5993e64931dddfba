#pragma once
#include <cstdint>
#include <span>

#include "mla/attention/shape.h"
#include "mla/cache/row_table.h"
#include "mla/kernels/leaf.h"

namespace mla {

/// Rows of a table that a query attends to: those that indices[0, count) name. An index that is no row of the
/// table is passed over; one that comes twice counts twice.
struct Selection {
  const RowTable* table = nullptr;
  const std::int32_t* indices = nullptr;
  std::int64_t count = 0;
};

/// One token's query heads and what they attend to.
struct SelectedQuery {
  const float* heads;  ///< head h's query at heads + h * head_stride
  std::int64_t head_stride;
  Selection rows, more_rows;  ///< of two tables; the second may have none
  float* out;                 ///< [h_q][d_v]
  float* lse;                 ///< [h_q] as attend's
  float* largest;             ///< [h_q] the largest scaled score, -inf where there is none; or null
};

/// Sparse attention (DeepSeek-V3.2's; FlashMLA's flash_mla_sparse_fwd and sparse decoding): `attend` of each
/// query over the rows it selects, whose first d_v values are the value. The rows are gathered into memory of
/// their own, a few queries' at a time, and rows in fp8 widened there. shape.h_kv is 1, and all queries see
/// all their rows. A query without rows gets output 0 and lse +inf. The bits of a query's result depend on
/// its own rows and their order alone. Throws Error for shapes and tables that do not fit.
void attend_selected(const AttentionShape& shape, std::span<const SelectedQuery> queries,
                     const LeafKernels& leaf = leaf_kernels());

/// What attention sinks make of outputs [tokens][h_q][d_v]: times exp(lse) / (exp(lse) + exp(sinks[h])),
/// where a sink may be infinite (FlashMLA's attn_sink). lse [tokens][h_q] stays.
void apply_sinks(const float* sinks, const float* lse, std::int64_t tokens, std::int64_t h_q,
                 std::int64_t d_v, float* out);

}  // namespace mla
