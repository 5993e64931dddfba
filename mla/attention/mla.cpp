#include "mla/attention/mla.h"

#include <algorithm>
#include <cstring>

#include "mla/attention/attention.h"
#include "mla/attention/prefill.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"
#include "mla/kernels/ops.h"
#include "mla/kernels/prefill.h"

namespace mla {
namespace {

/// Columns that belong to one head in a [tokens, heads * width] matrix.
MatrixView<float> head(MatrixView<float> x, std::int64_t h, std::int64_t width) {
  return x.columns(h * width, width);
}

/// Queries [tokens, n_h (d_n + d_r)], each head's rope part turned to its token's position. (Chapter 3.2.1.)
MatrixView<float> make_queries(const MlaShape& s, const MlaWeights& w, const MlaCall& call,
                               MatrixView<const float> x, MlaScratch& scratch) {
  MatrixView<float> q = matrix_in(scratch.queries, x.rows, s.num_heads * s.qk_head_dim());
  if (s.q_lora_rank > 0) {
    MatrixView<float> latent = matrix_in(scratch.query_latent, x.rows, s.q_lora_rank);
    matmul(x, w.q_a_proj, call.compute, latent);
    rms_norm(latent, w.q_a_norm, s.norm_epsilon, latent);
    matmul(latent, w.q_b_proj, call.compute, q);
  } else {
    matmul(x, w.q_proj, call.compute, q);
  }
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t h = 0; h < s.num_heads; ++h) {
      call.rotary->rotate(*call.table, t, q.row(t) + h * s.qk_head_dim() + s.qk_nope_head_dim);
    }
  }
  return q;
}

/// Computes each token's row [c_kv | k_rope] and stores it: all that it leaves behind. (Chapter 3.2.2.)
void append_rows(const MlaShape& s, const MlaWeights& w, const MlaCall& call, MatrixView<const float> x,
                 KvCache& cache, MlaScratch& scratch) {
  MatrixView<float> rows = matrix_in(scratch.latents, x.rows, s.latent_width());
  matmul(x, w.kv_a_proj, call.compute, rows);
  MatrixView<float> c_kv = rows.columns(0, s.kv_lora_rank);
  rms_norm(c_kv, w.kv_a_norm, s.norm_epsilon, c_kv);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    call.rotary->rotate(*call.table, t, rows.row(t) + s.kv_lora_rank);
    cache.write(call.layer, call.first_position + t, rows.row(t));
  }
}

QueryView as_queries(MatrixView<float> q, std::int64_t head_stride) {
  return {q.data, q.rows, q.stride, head_stride};
}

/// Absorbed: scores are (q_nope W_UK | q_rope) . (c_kv | k_rope), the sum runs over the latents, W_UV comes
/// last. (Chapter 3.3.2 and 3.3.3.)
void attend_absorbed(const MlaShape& s, const MlaWeights& w, const MlaCall& call, MatrixView<float> q,
                     const KvView& kv, MlaScratch& scratch, MatrixView<float> values) {
  MatrixView<float> absorbed = matrix_in(scratch.absorbed, q.rows, s.num_heads * s.latent_width());
  parallel_for(s.num_heads, q.rows * s.qk_nope_head_dim * s.kv_lora_rank, [&](std::int64_t h) {
    MatrixView<float> q_head = head(q, h, s.qk_head_dim());
    MatrixView<float> a_head = head(absorbed, h, s.latent_width());
    matmul_transposed(q_head.columns(0, s.qk_nope_head_dim), w.w_uk(s, h), call.compute,
                      a_head.columns(0, s.kv_lora_rank));
    for (std::int64_t t = 0; t < q.rows; ++t) {
      std::copy_n(q_head.row(t) + s.qk_nope_head_dim, s.qk_rope_head_dim, a_head.row(t) + s.kv_lora_rank);
    }
  });
  MatrixView<float> context = matrix_in(scratch.context, q.rows, s.num_heads * s.kv_lora_rank);
  const AttentionShape shape{
      s.num_heads, 1, s.latent_width(), s.kv_lora_rank, static_cast<float>(s.softmax_scale), true};
  attend(shape, as_queries(absorbed, s.latent_width()), kv, context.data, nullptr);
  parallel_for(s.num_heads, q.rows * s.v_head_dim * s.kv_lora_rank, [&](std::int64_t h) {
    matmul(head(context, h, s.kv_lora_rank), w.w_uv(s, h), call.compute, head(values, h, s.v_head_dim));
  });
}

/// Where rebuilt rows lie: rows [k_nope | k_rope | v] of one head after those of another, an odd number of
/// lines apart, so that they use all sets of L1.
struct ExpandedRows {
  RowLayout row;
  std::int64_t row_bytes, head_bytes;

  ExpandedRows(const MlaShape& s, DType type)
      : row(RowLayout::heads(1, s.qk_head_dim(), s.v_head_dim, type)),
        row_bytes((parts(row.bytes(), 64) | 1) * 64),
        head_bytes(OnlineAttention::part_rows * row_bytes) {}

  KvView view(const std::byte* const& page, std::int64_t count) const {
    KvView rows = dense_view(row, page, count);
    rows.row_bytes = row_bytes;
    rows.head_bytes = head_bytes;
    return rows;
  }
};

/// Rebuilds rows [first, first + count) of the cache, in scratch.part_rows.
void decompress_rows(const MlaShape& s, const MlaWeights& w, const MlaCall& call, const KvView& kv,
                     const RowLayout& cached, std::int64_t first, std::int64_t count,
                     const ExpandedRows& expanded, MlaScratch& scratch) {
  const std::int64_t room = round_up(count, 64);  // so that memory is not taken token by token
  MatrixView<float> latents = matrix_in(scratch.part_latents, room, s.latent_width()).block(0, count);
  for (std::int64_t i = 0; i < count; ++i) cached.read(kv.row(first + i), s.latent_width(), latents.row(i));
  MatrixView<float> both =
      matrix_in(scratch.part_expanded, room, s.num_heads * (s.qk_nope_head_dim + s.v_head_dim))
          .block(0, count);
  matmul(latents.columns(0, s.kv_lora_rank), w.kv_b_proj, call.compute, both);

  std::byte* const rows = scratch.part_rows.resize(s.num_heads * expanded.head_bytes);
  parallel_for(count, s.num_heads * expanded.row.values(), [&](std::int64_t i) {
    thread_local Buffer<float> memory;
    float* const row = memory.resize(expanded.row.values());
    const float* k_and_v = both.row(i);
    for (std::int64_t h = 0; h < s.num_heads; ++h) {
      float* to = std::copy_n(k_and_v, s.qk_nope_head_dim, row);
      to = std::copy_n(latents.row(i) + s.kv_lora_rank, s.qk_rope_head_dim, to);
      std::copy_n(k_and_v + s.qk_nope_head_dim, s.v_head_dim, to);
      expanded.row.write(row, rows + h * expanded.head_bytes + i * expanded.row_bytes);
      k_and_v += s.qk_nope_head_dim + s.v_head_dim;
    }
  });
}

/// Explicit: keys and values of every head are rebuilt from the latents, part by part. (Chapter 3.4.3.)
void attend_decompressed(const MlaShape& s, const MlaWeights& w, const MlaCall& call, MatrixView<float> q,
                         const KvView& kv, const RowLayout& cached, MlaScratch& scratch,
                         MatrixView<float> values) {
  if (call.compute == DType::bf16 && has_prefill()) {
    const LatentShape latent{s.num_heads,        s.kv_lora_rank, s.qk_nope_head_dim,
                             s.qk_rope_head_dim, s.v_head_dim,   static_cast<float>(s.softmax_scale)};
    return prefill_latents(latent, w.kv_b_proj, q, kv, cached, values);
  }
  const AttentionShape shape{
      s.num_heads, s.num_heads, s.qk_head_dim(), s.v_head_dim, static_cast<float>(s.softmax_scale), true};
  const ExpandedRows expanded(s, call.compute);
  OnlineAttention attention(shape, as_queries(q, s.qk_head_dim()), kv.length, values.data, scratch.sums);
  for (std::int64_t first = 0; first < kv.length; first += OnlineAttention::part_rows) {
    const std::int64_t count = std::min(OnlineAttention::part_rows, kv.length - first);
    decompress_rows(s, w, call, kv, cached, first, count, expanded, scratch);
    const std::byte* page = scratch.part_rows.data();
    attention.add(expanded.view(page, count), first);
  }
  attention.finish(nullptr);
}

}  // namespace

const char* name_of(MlaForm form) {
  switch (form) {
    case MlaForm::automatic:
      return "auto";
    case MlaForm::decompress:
      return "explicit";
    case MlaForm::absorb:
      return "absorbed";
  }
  return "?";
}

MlaForm form_named(std::string_view name, std::string_view field) {
  for (const MlaForm form : {MlaForm::automatic, MlaForm::decompress, MlaForm::absorb}) {
    if (name == name_of(form)) return form;
  }
  fail("{}: found '{}', expected auto, explicit or absorbed", field, name);
}

Weight MlaWeights::w_uk(const MlaShape& s, std::int64_t h) const {
  return kv_b_proj.row_block(h * (s.qk_nope_head_dim + s.v_head_dim), s.qk_nope_head_dim);
}

Weight MlaWeights::w_uv(const MlaShape& s, std::int64_t h) const {
  return kv_b_proj.row_block(h * (s.qk_nope_head_dim + s.v_head_dim) + s.qk_nope_head_dim, s.v_head_dim);
}

void mla_attend(const MlaShape& shape, const MlaWeights& weights, const MlaCall& call,
                MatrixView<float> queries, const KvCache& cache, MlaScratch& scratch,
                MatrixView<float> values) {
  const KvView past = cache.view(call.layer);
  const MlaForm form = call.form == MlaForm::automatic
                           ? choose_form(shape, queries.rows, past.length, call.compute, past.type)
                           : call.form;
  if (form == MlaForm::absorb) {
    attend_absorbed(shape, weights, call, queries, past, scratch, values);
  } else {
    attend_decompressed(shape, weights, call, queries, past, cache.pool().layout(), scratch, values);
  }
}

void mla_forward(const MlaShape& shape, const MlaWeights& weights, const MlaCall& call,
                 MatrixView<const float> x, KvCache& cache, MlaScratch& scratch, MatrixView<float> out) {
  require(call.first_position + x.rows == cache.length(),
          "mla: tokens [{}, {}) do not end the cache of {} rows", call.first_position,
          call.first_position + x.rows, cache.length());
  MatrixView<float> queries = make_queries(shape, weights, call, x, scratch);
  append_rows(shape, weights, call, x, cache, scratch);
  MatrixView<float> values = matrix_in(scratch.values, x.rows, shape.num_heads * shape.v_head_dim);
  mla_attend(shape, weights, call, queries, cache, scratch, values);
  matmul(values, weights.o_proj, call.compute, out);
}

}  // namespace mla
