#include "mla/train/mla_layer.h"

#include <algorithm>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/ops.h"

namespace mla {
namespace {

Trained rows_of(const Trained& w, std::int64_t first, std::int64_t count) {
  return {w.value.block(first, count), w.gradient.block(first, count)};
}

/// Columns that belong to one head in a [tokens, heads * width] matrix.
MatrixView<float> head(MatrixView<float> x, std::int64_t h, std::int64_t width) {
  return x.columns(h * width, width);
}

/// The call's matrices, by name: views of tape and scratch.
struct Layer {
  const MlaShape& s;
  const TrainedMla& w;
  const MlaTraining& how;
  MlaTape& tape;
  MlaTrainingScratch& scratch;

  std::int64_t tokens() const { return how.block.tokens(); }
  bool absorbs() const { return how.form == MlaForm::absorb; }
  std::int64_t head_row() const { return s.qk_head_dim() + s.v_head_dim; }
  std::int64_t expanded_head() const { return s.qk_nope_head_dim + s.v_head_dim; }
  MatrixView<float> in(Buffer<float>& buffer, std::int64_t cols) const {
    return matrix_in(buffer, tokens(), cols);
  }

  MatrixView<float> query_latent() const { return in(tape.query_latent, s.q_lora_rank); }
  MatrixView<float> queries() const { return in(tape.queries, s.num_heads * s.qk_head_dim()); }
  MatrixView<float> latents() const { return in(tape.latents, s.latent_width()); }
  MatrixView<float> c_kv() const { return in(tape.c_kv, s.kv_lora_rank); }
  MatrixView<float> rows() const {
    return in(tape.rows, absorbs() ? s.latent_width() : s.num_heads * head_row());
  }
  MatrixView<float> absorbed() const { return in(tape.absorbed, s.num_heads * s.latent_width()); }
  MatrixView<float> context() const { return in(tape.context, s.num_heads * s.kv_lora_rank); }
  MatrixView<float> values() const { return in(tape.values, s.num_heads * s.v_head_dim); }

  AttentionShape attention() const {
    const auto scale = static_cast<float>(s.softmax_scale);
    if (absorbs()) return {s.num_heads, 1, s.latent_width(), s.kv_lora_rank, scale, true};
    return {s.num_heads, s.num_heads, s.qk_head_dim(), s.v_head_dim, scale, true};
  }
  RowLayout layout() const {
    return absorbs() ? RowLayout::latent(s.kv_lora_rank, s.qk_rope_head_dim, DType::f32)
                     : RowLayout::heads(s.num_heads, s.qk_head_dim(), s.v_head_dim, DType::f32);
  }

  BlockAttention over_itself() const {
    const MatrixView<float> read = absorbs() ? absorbed() : queries();
    const MatrixView<float> found = absorbs() ? context() : values();
    return {how.block, attention(), layout(), read, rows(), found, tape.lse.resize(tokens() * s.num_heads)};
  }
};

// ---------------------------------------------------------------- forward

void make_queries(const Layer& l, MatrixView<const float> x) {
  const MlaShape& s = l.s;
  if (s.q_lora_rank > 0) {
    linear(x, l.w.q_a_proj, l.how.compute, l.query_latent());
    const MatrixView<float> normed = l.in(l.scratch.normed, s.q_lora_rank);
    rms_norm(l.query_latent(), l.w.q_a_norm.vector(), s.norm_epsilon, normed);
    linear(normed, l.w.q_b_proj, l.how.compute, l.queries());
  } else {
    linear(x, l.w.q_proj, l.how.compute, l.queries());
  }
  rotate_block(l.how, s.qk_head_dim(), s.qk_nope_head_dim, l.queries());
}

/// c_kv before and after its norm, and the rotated key that all heads share.
void make_latents(const Layer& l, MatrixView<const float> x) {
  const MlaShape& s = l.s;
  linear(x, l.w.kv_a_proj, l.how.compute, l.latents());
  const MatrixView<float> normed = l.absorbs() ? l.rows().columns(0, s.kv_lora_rank) : l.c_kv();
  rms_norm(l.latents().columns(0, s.kv_lora_rank), l.w.kv_a_norm.vector(), s.norm_epsilon, normed);
  rotate_block(l.how, s.latent_width(), s.kv_lora_rank, l.latents());
}

/// Explicit: [k_nope | k_rope | v] per head.
void make_head_rows(const Layer& l) {
  const MlaShape& s = l.s;
  const MatrixView<float> expanded = l.in(l.scratch.expanded, s.num_heads * l.expanded_head());
  linear(l.c_kv(), l.w.kv_b_proj, l.how.compute, expanded);
  const MatrixView<float> rows = l.rows(), latents = l.latents();
  parallel_for(l.tokens(), rows.cols * work_of_value, [&](std::int64_t t) {
    const float* k_and_v = expanded.row(t);
    float* row = rows.row(t);
    for (std::int64_t h = 0; h < s.num_heads; ++h, k_and_v += l.expanded_head()) {
      row = std::copy_n(k_and_v, s.qk_nope_head_dim, row);
      row = std::copy_n(latents.row(t) + s.kv_lora_rank, s.qk_rope_head_dim, row);
      row = std::copy_n(k_and_v + s.qk_nope_head_dim, s.v_head_dim, row);
    }
  });
}

/// Absorbed: rows are [c_kv | k_rope], queries [q_nope W_UK | q_rope].
void absorb_queries(const Layer& l) {
  const MlaShape& s = l.s;
  const MatrixView<float> rows = l.rows(), latents = l.latents(), queries = l.queries(),
                          absorbed = l.absorbed();
  parallel_for(l.tokens(), s.num_heads * s.qk_rope_head_dim * work_of_value, [&](std::int64_t t) {
    std::copy_n(latents.row(t) + s.kv_lora_rank, s.qk_rope_head_dim, rows.row(t) + s.kv_lora_rank);
    for (std::int64_t h = 0; h < s.num_heads; ++h)
      std::copy_n(head(queries, h, s.qk_head_dim()).row(t) + s.qk_nope_head_dim, s.qk_rope_head_dim,
                  head(absorbed, h, s.latent_width()).row(t) + s.kv_lora_rank);
  });
  for (std::int64_t h = 0; h < s.num_heads; ++h) {
    matmul_transposed(head(queries, h, s.qk_head_dim()).columns(0, s.qk_nope_head_dim),
                      l.w.w_uk(s, h).weight(), l.how.compute,
                      head(absorbed, h, s.latent_width()).columns(0, s.kv_lora_rank));
  }
}

/// Absorbed: W_UV behind the sum over latents.
void project_context(const Layer& l) {
  for (std::int64_t h = 0; h < l.s.num_heads; ++h) {
    linear(head(l.context(), h, l.s.kv_lora_rank), l.w.w_uv(l.s, h), l.how.compute,
           head(l.values(), h, l.s.v_head_dim));
  }
}

// ---------------------------------------------------------------- backward

void make_queries_backward(const Layer& l, MatrixView<const float> x, MatrixView<float> d_x) {
  const MlaShape& s = l.s;
  const MatrixView<float> d_queries = l.in(l.scratch.d_queries, s.num_heads * s.qk_head_dim());
  rotate_block_back(l.how, s.qk_head_dim(), s.qk_nope_head_dim, d_queries);
  if (s.q_lora_rank == 0) return linear_backward(x, l.w.q_proj, d_queries, l.how.compute, d_x, true);
  const MatrixView<float> normed = l.in(l.scratch.normed, s.q_lora_rank);
  rms_norm(l.query_latent(), l.w.q_a_norm.vector(), s.norm_epsilon, normed);
  const MatrixView<float> both = matrix_in(l.scratch.d_query_latent, 2 * l.tokens(), s.q_lora_rank);
  const MatrixView<float> d_normed = both.block(0, l.tokens()), d_latent = both.block(l.tokens(), l.tokens());
  linear_backward(normed, l.w.q_b_proj, d_queries, l.how.compute, d_normed);
  std::fill_n(d_latent.data, d_latent.rows * d_latent.cols, 0.0f);
  rms_norm_backward(l.query_latent(), l.w.q_a_norm, s.norm_epsilon, d_normed, d_latent);
  linear_backward(x, l.w.q_a_proj, d_latent, l.how.compute, d_x, true);
}

/// From d_c_kv and the rope part of d_latents. Writes d_x.
void make_latents_backward(const Layer& l, MatrixView<const float> x, MatrixView<float> d_x) {
  const MlaShape& s = l.s;
  const MatrixView<float> d_latents = l.in(l.scratch.d_latents, s.latent_width());
  rotate_block_back(l.how, s.latent_width(), s.kv_lora_rank, d_latents);
  const MatrixView<float> d_c = d_latents.columns(0, s.kv_lora_rank);
  for (std::int64_t t = 0; t < d_c.rows; ++t) std::fill_n(d_c.row(t), d_c.cols, 0.0f);
  rms_norm_backward(l.latents().columns(0, s.kv_lora_rank), l.w.kv_a_norm, s.norm_epsilon,
                    l.in(l.scratch.d_c_kv, s.kv_lora_rank), d_c);
  linear_backward(x, l.w.kv_a_proj, d_latents, l.how.compute, d_x);
}

/// Explicit: from d_rows to d_c_kv and the rope part of d_latents, which all heads share.
void make_head_rows_backward(const Layer& l) {
  const MlaShape& s = l.s;
  const MatrixView<float> d_rows = l.in(l.scratch.d_rows, s.num_heads * l.head_row());
  const MatrixView<float> d_expanded = l.in(l.scratch.d_expanded, s.num_heads * l.expanded_head());
  const MatrixView<float> d_latents = l.in(l.scratch.d_latents, s.latent_width());
  parallel_for(l.tokens(), d_rows.cols * work_of_value, [&](std::int64_t t) {
    const float* d_row = d_rows.row(t);
    float* d_k_and_v = d_expanded.row(t);
    float* d_rope = d_latents.row(t) + s.kv_lora_rank;
    std::fill_n(d_rope, s.qk_rope_head_dim, 0.0f);
    for (std::int64_t h = 0; h < s.num_heads; ++h, d_row += l.head_row()) {
      d_k_and_v = std::copy_n(d_row, s.qk_nope_head_dim, d_k_and_v);
      for (std::int64_t i = 0; i < s.qk_rope_head_dim; ++i) d_rope[i] += d_row[s.qk_nope_head_dim + i];
      d_k_and_v = std::copy_n(d_row + s.qk_head_dim(), s.v_head_dim, d_k_and_v);
    }
  });
  linear_backward(l.c_kv(), l.w.kv_b_proj, d_expanded, l.how.compute, l.in(l.scratch.d_c_kv, s.kv_lora_rank));
}

/// Absorbed: from d_absorbed to d_queries and W_UK, from d_rows to d_c_kv and d_latents.
void absorb_queries_backward(const Layer& l) {
  const MlaShape& s = l.s;
  const MatrixView<float> d_absorbed = l.in(l.scratch.d_absorbed, s.num_heads * s.latent_width());
  const MatrixView<float> d_queries = l.in(l.scratch.d_queries, s.num_heads * s.qk_head_dim());
  for (std::int64_t h = 0; h < s.num_heads; ++h) {
    const MatrixView<float> d_a = head(d_absorbed, h, s.latent_width()).columns(0, s.kv_lora_rank);
    const MatrixView<float> q = head(l.queries(), h, s.qk_head_dim()).columns(0, s.qk_nope_head_dim);
    linear(d_a, l.w.w_uk(s, h), l.how.compute,
           head(d_queries, h, s.qk_head_dim()).columns(0, s.qk_nope_head_dim));
    // a = q W_UK is the linear layer read backwards: q takes the place of d_y and d_a that of x.
    linear_backward(d_a, l.w.w_uk(s, h), q, l.how.compute, {});
  }
  const MatrixView<float> d_rows = l.in(l.scratch.d_rows, s.latent_width());
  const MatrixView<float> d_c_kv = l.in(l.scratch.d_c_kv, s.kv_lora_rank);
  const MatrixView<float> d_latents = l.in(l.scratch.d_latents, s.latent_width());
  parallel_for(l.tokens(), d_absorbed.cols * work_of_value, [&](std::int64_t t) {
    for (std::int64_t h = 0; h < s.num_heads; ++h)
      std::copy_n(head(d_absorbed, h, s.latent_width()).row(t) + s.kv_lora_rank, s.qk_rope_head_dim,
                  head(d_queries, h, s.qk_head_dim()).row(t) + s.qk_nope_head_dim);
    std::copy_n(d_rows.row(t), s.kv_lora_rank, d_c_kv.row(t));
    std::copy_n(d_rows.row(t) + s.kv_lora_rank, s.qk_rope_head_dim, d_latents.row(t) + s.kv_lora_rank);
  });
}

/// Writes the gradients by what attention read: d_queries or d_absorbed, and d_rows.
void attend_rows_backward(const Layer& l, MatrixView<const float> d_out) {
  const BlockAttention attention = l.over_itself();
  attend_block_backward(
      attention, d_out,
      l.in(l.absorbs() ? l.scratch.d_absorbed : l.scratch.d_queries, attention.queries.cols),
      l.in(l.scratch.d_rows, attention.rows.cols));
}

/// Absorbed: from d_values to d_context and W_UV.
MatrixView<float> project_context_backward(const Layer& l, MatrixView<float> d_values) {
  const MatrixView<float> d_context = l.in(l.scratch.d_context, l.s.num_heads * l.s.kv_lora_rank);
  for (std::int64_t h = 0; h < l.s.num_heads; ++h) {
    linear_backward(head(l.context(), h, l.s.kv_lora_rank), l.w.w_uv(l.s, h),
                    head(d_values, h, l.s.v_head_dim), l.how.compute, head(d_context, h, l.s.kv_lora_rank));
  }
  return d_context;
}

}  // namespace

Trained TrainedMla::w_uk(const MlaShape& s, std::int64_t h) const {
  return rows_of(kv_b_proj, h * (s.qk_nope_head_dim + s.v_head_dim), s.qk_nope_head_dim);
}

Trained TrainedMla::w_uv(const MlaShape& s, std::int64_t h) const {
  return rows_of(kv_b_proj, h * (s.qk_nope_head_dim + s.v_head_dim) + s.qk_nope_head_dim, s.v_head_dim);
}

void mla_taped(const MlaShape& shape, const TrainedMla& weights, const MlaTraining& how,
               MatrixView<const float> x, MlaTape& tape, MlaTrainingScratch& scratch, MatrixView<float> out) {
  require(how.form != MlaForm::automatic, "mla: training needs a form, explicit or absorbed");
  require(x.rows == how.block.tokens(), "mla: found {} tokens, expected {} sequences of {}", x.rows,
          how.block.sequences, how.block.length);
  const Layer l{shape, weights, how, tape, scratch};
  make_queries(l, x);
  make_latents(l, x);
  l.absorbs() ? absorb_queries(l) : make_head_rows(l);
  attend_block(l.over_itself());
  if (l.absorbs()) project_context(l);
  linear(l.values(), weights.o_proj, how.compute, out);
}

void mla_backward(const MlaShape& shape, const TrainedMla& weights, const MlaTraining& how,
                  MatrixView<const float> x, MatrixView<const float> d_out, MlaTape& tape,
                  MlaTrainingScratch& scratch, MatrixView<float> d_x) {
  const Layer l{shape, weights, how, tape, scratch};
  const MatrixView<float> d_values = l.in(scratch.d_values, shape.num_heads * shape.v_head_dim);
  linear_backward(l.values(), weights.o_proj, d_out, how.compute, d_values);
  const MatrixView<float> d_attended = l.absorbs() ? project_context_backward(l, d_values) : d_values;
  attend_rows_backward(l, d_attended);
  l.absorbs() ? absorb_queries_backward(l) : make_head_rows_backward(l);
  make_latents_backward(l, x, d_x);
  make_queries_backward(l, x, d_x);
}

}  // namespace mla
