#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "mla/attention/head_tiles.h"
#include "support/oracle.h"

namespace mla::test {

struct Sizes {
  AttentionShape shape;
  std::int64_t tokens, length;
  bool latent;
  bool own_rows = false;  ///< a kv head's rows lie together, not a row's heads
};

/// Random queries, rows and d_out of one shape, and what forward left behind. Queries lie strided, with NaN
/// between them, as do the heads of a row.
struct DenseProblem {
  DenseProblem(const Sizes& sizes, Random& random, double spread = 1)
      : shape(sizes.shape), tokens(sizes.tokens), latent(sizes.latent) {
    shape.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(shape.d_qk)));
    head_stride = shape.d_qk + 3;
    token_stride = shape.h_q * head_stride + 5;
    queries.assign(static_cast<std::size_t>(tokens > 0 ? tokens * token_stride - 8 : 0),
                   std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t i = 0; i < tokens * shape.h_q; ++i)
      fill(queries, query_at(i), shape.d_qk, random, spread);
    rows.length = sizes.length;
    rows.value_offset = latent ? 0 : shape.d_qk + 1;
    rows.head_width = (latent ? shape.d_qk : rows.value_offset + shape.d_v) + 2;
    rows.width = (sizes.own_rows ? 1 : shape.h_kv) * rows.head_width + 3;
    if (sizes.own_rows) rows.head_width = rows.length * rows.width + 1;
    const std::int64_t values = sizes.own_rows ? shape.h_kv * rows.head_width : rows.length * rows.width;
    rows.data.assign(static_cast<std::size_t>(values), std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t r = 0; r < rows.length; ++r) {
      for (std::int64_t h = 0; h < shape.h_kv; ++h) {
        const std::int64_t key = r * rows.width + h * rows.head_width;
        fill(rows.data, key, shape.d_qk, random, spread);
        if (!latent) fill(rows.data, key + rows.value_offset, shape.d_v, random, 1);
      }
    }
    d_out = random.values(tokens * shape.h_q * shape.d_v);
    const auto forward = plain_attention(shape, query_view(), rows);
    for (const double x : forward.out) out.push_back(static_cast<float>(x));
    for (const double x : forward.lse) lse.push_back(static_cast<float>(x));
  }

  std::int64_t query_at(std::int64_t i) const {
    return i / shape.h_q * token_stride + i % shape.h_q * head_stride;
  }
  static void fill(std::vector<float>& to, std::int64_t at, std::int64_t count, Random& random,
                   double spread) {
    const std::vector<float> values = random.values(count, spread);
    std::copy(values.begin(), values.end(), to.begin() + at);
  }
  QueryView query_view() const { return {queries.data(), tokens, token_stride, head_stride}; }
  RowShape row_shape() const { return {rows.width, rows.head_width, rows.value_offset}; }

  AttentionShape shape;
  std::int64_t tokens, head_stride, token_stride;
  bool latent;
  std::vector<float> queries, d_out, out, lse;
  PlainRows rows;
};

inline std::string describe(const DenseProblem& p, Isa isa) {
  const AttentionShape& s = p.shape;
  return fmt::format("h_q {} h_kv {} d_qk {} d_v {} causal {} tokens {} rows {} latent {} {}", s.h_q, s.h_kv,
                     s.d_qk, s.d_v, s.causal, p.tokens, p.rows.length, p.latent, name_of(isa));
}

}  // namespace mla::test
