#include "mla/attention/gqa.h"

#include <algorithm>

#include "mla/attention/attention.h"
#include "mla/attention/prefill.h"
#include "mla/core/error.h"
#include "mla/kernels/prefill.h"

namespace mla {
namespace {

/// y = x W^T, each head of `head_dim` columns turned to its token's position.
MatrixView<float> project_and_turn(const HeadsCall& call, std::int64_t head_dim, MatrixView<const float> x,
                                   const Weight& weight, Buffer<float>& memory) {
  MatrixView<float> y = matrix_in(memory, x.rows, weight.rows);
  matmul(x, weight, call.compute, y);
  for (std::int64_t t = 0; t < y.rows; ++t) {
    for (std::int64_t at = 0; at < y.cols; at += head_dim) call.rotary->rotate(*call.table, t, y.row(t) + at);
  }
  return y;
}

/// Computes each token's keys and values and stores them, [k | v] per kv head: all that a token leaves
/// behind.
void append_rows(const HeadsShape& s, const HeadsWeights& w, const HeadsCall& call, MatrixView<const float> x,
                 KvCache& cache, HeadsScratch& scratch) {
  const MatrixView<float> keys = project_and_turn(call, s.head_dim, x, w.k_proj, scratch.keys);
  const MatrixView<float> values = matrix_in(scratch.new_values, x.rows, s.num_kv_heads * s.head_dim);
  matmul(x, w.v_proj, call.compute, values);
  scratch.row.resize(2 * s.num_kv_heads * s.head_dim);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    float* row = scratch.row.data();
    for (std::int64_t h = 0; h < s.num_kv_heads; ++h) {
      row = std::copy_n(keys.row(t) + h * s.head_dim, s.head_dim, row);
      row = std::copy_n(values.row(t) + h * s.head_dim, s.head_dim, row);
    }
    cache.write(call.layer, call.first_position + t, scratch.row.data());
  }
}

bool has_panels(DType compute, DType rows) {
  return compute == DType::bf16 && rows == DType::bf16 && has_prefill();
}

}  // namespace

HeadsKernels choose_kernels(const HeadsShape& s, std::int64_t tokens, DType compute, DType rows) {
  const std::int64_t from = std::min<std::int64_t>(64, 5 * (s.num_heads / s.num_kv_heads));
  return has_panels(compute, rows) && tokens >= from ? HeadsKernels::panels : HeadsKernels::online;
}

void gqa_attend(const HeadsShape& s, const HeadsCall& call, MatrixView<const float> queries,
                const KvCache& cache, MatrixView<float> values) {
  const KvView kv = cache.view(call.layer);
  const AttentionShape shape{
      s.num_heads, s.num_kv_heads, s.head_dim, s.head_dim, static_cast<float>(s.softmax_scale), true};
  const QueryView view{queries.data, queries.rows, queries.stride, s.head_dim};
  const HeadsKernels kernels = call.kernels == HeadsKernels::automatic
                                   ? choose_kernels(s, queries.rows, call.compute, kv.type)
                                   : call.kernels;
  if (kernels == HeadsKernels::online) return attend(shape, view, kv, values.data, nullptr);
  require(has_panels(call.compute, kv.type),
          "attention in panels: found products in {} over rows of {}, expected bf16 over bf16 on a CPU with "
          "AVX512_BF16",
          name_of(call.compute), name_of(kv.type));
  prefill_heads(shape, view, kv, values.data);
}

void gqa_forward(const HeadsShape& shape, const HeadsWeights& weights, const HeadsCall& call,
                 MatrixView<const float> x, KvCache& cache, HeadsScratch& scratch, MatrixView<float> out) {
  require(call.first_position + x.rows == cache.length(),
          "gqa: tokens [{}, {}) do not end the cache of {} rows", call.first_position,
          call.first_position + x.rows, cache.length());
  const MatrixView<float> queries =
      project_and_turn(call, shape.head_dim, x, weights.q_proj, scratch.queries);
  append_rows(shape, weights, call, x, cache, scratch);
  MatrixView<float> values = matrix_in(scratch.values, x.rows, shape.num_heads * shape.head_dim);
  gqa_attend(shape, call, queries, cache, values);
  matmul(values, weights.o_proj, call.compute, out);
}

}  // namespace mla
