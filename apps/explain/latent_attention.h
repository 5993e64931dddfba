#pragma once
#include <algorithm>
#include <cstddef>
#include <vector>

#include "mla/attention/attention.h"
#include "mla/attention/mla.h"
#include "mla/cache/row_layout.h"
#include "mla/kernels/ops.h"

// Chapter 3.6: latent attention from scratch, written with the library's steps, for reading. (mla_forward is
// what models run.) `mla explain module` shows what stands between the marks, and runs it.

namespace mla::app {

using Matrix = MatrixView<float>;

/// A matrix with its memory.
struct Owned : Matrix {
  Owned(std::int64_t rows_, std::int64_t cols_) : Matrix(nullptr, rows_, cols_), memory(rows_ * cols_) {
    data = memory.data();
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  std::vector<float> memory;
};

inline constexpr DType f32 = DType::f32;

// (Not formatted: a terminal has 80 columns.)
// clang-format off
// [shown
inline void latent_attention(const MlaShape& shape, const MlaWeights& w,
                             const Rotary& rotary, std::vector<float>& rows,
                             Matrix x, Matrix out) {
  const auto& [d, n_h, d_q, d_c, d_n, d_r, d_v, scale, epsilon] = shape;
  const auto n = x.rows, past = std::ssize(rows) / (d_c + d_r);
  Owned q_latent(n, d_q), q(n, n_h * (d_n + d_r)), row(n, d_c + d_r);
  Owned absorbed(n, n_h * (d_c + d_r)), sums(n, n_h * d_c), v(n, n_h * d_v);
  Matrix c_kv = row.columns(0, d_c);
  Rotary::Table angles;
  rotary.fill(past, n, angles);
  matmul(x, w.q_a_proj, f32, q_latent);               // W_DQ
  rms_norm(q_latent, w.q_a_norm, epsilon, q_latent);
  matmul(q_latent, w.q_b_proj, f32, q);               // W_UQ, W_QR
  matmul(x, w.kv_a_proj, f32, row);                   // W_DKV, W_KR
  rms_norm(c_kv, w.kv_a_norm, epsilon, c_kv);
  for (int t = 0; t < n; ++t) rotary.rotate(angles, t, row.row(t) + d_c);
  rows.insert(rows.end(), row.data, row.data + n * (d_c + d_r));
  for (int h = 0; h < n_h; ++h) {
    Matrix q_h = q.columns(h * (d_n + d_r), d_n + d_r);
    Matrix a_h = absorbed.columns(h * (d_c + d_r), d_c + d_r);
    matmul_transposed(q_h.columns(0, d_n), w.w_uk(shape, h), f32,
                      a_h.columns(0, d_c));           // q_nope W_UK
    for (int t = 0; t < n; ++t) {
      std::copy_n(q_h.row(t) + d_n, d_r, a_h.row(t) + d_c);
      rotary.rotate(angles, t, a_h.row(t) + d_c);
    }
  }
  auto* page = reinterpret_cast<const std::byte*>(rows.data());
  attend({n_h, 1, d_c + d_r, d_c, float(scale), true},
         {absorbed.data, n, absorbed.stride, d_c + d_r},
         dense_view(RowLayout::latent(d_c, d_r, f32), page, past + n),
         sums.data, nullptr);
  for (int h = 0; h < n_h; ++h)
    matmul(sums.columns(h * d_c, d_c), w.w_uv(shape, h), f32,
           v.columns(h * d_v, d_v));
  matmul(v, w.o_proj, f32, out);                      // W_O
}
// shown]
// clang-format on

}  // namespace mla::app
