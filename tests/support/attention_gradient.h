#pragma once
#include <cstdint>
#include <vector>

#include "support/oracle.h"

namespace mla::test {

/// A gradient in double, and for each value the sum of the sizes of what was added up for it: |p d_out| for
/// values, for the rest |x| scale p (sum |d_out v| + sum |d_out out|), x being the key or the query.
struct GradientAnswer {
  std::vector<double> d_queries, d_queries_size;  ///< [tokens][h_q][d_qk]
  std::vector<double> d_rows, d_rows_size;        ///< as the rows lie
};

/// The gradient of sum(d_out * attention) by its formulas, a query and a row at a time; d_out
/// [tokens][h_q][d_v].
GradientAnswer plain_attention_gradient(const AttentionShape& shape, const QueryView& queries,
                                        const PlainRows& rows, const std::vector<float>& d_out);

}  // namespace mla::test
