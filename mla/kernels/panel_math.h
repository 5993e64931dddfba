#pragma once
// Products of packed panels (panel.h), written once over the operands' `Ops`: everything here is in the
// anonymous namespace of the instruction-set file that includes it.
//
// Ops has: F, a vector of `width` f32 sums; X, one of as many units; zero; load(const float*) and store of F,
// load_part and store_part; add; load_units(p), repeat(p) of one unit, fma(a, b, sums); rows and vectors, the
// panels' sizes, rows in fours; values, of a unit; and for packing pack_pair, see pack_straight, and
// convert(x, n, units), n values that follow each other, zeros behind the last in its unit.
#include <immintrin.h>

#include "mla/kernels/panel.h"

namespace mla {
namespace {

/// Stores the first `cols` columns of a row of sums.
template <class Ops, int N>
__attribute__((always_inline)) inline void finish_panel_row(const typename Ops::F* sums, std::int64_t cols,
                                                            bool adds, float* c) {
#pragma GCC unroll 3
  for (int j = 0; j < N; ++j) {
    const std::int64_t rest = cols - j * Ops::width;
    if (rest >= Ops::width) {
      Ops::store(c + j * Ops::width, adds ? Ops::add(Ops::load(c + j * Ops::width), sums[j]) : sums[j]);
    } else if (rest > 0) {
      float* const at = c + j * Ops::width;
      Ops::store_part(at, adds ? Ops::add(Ops::load_part(at, rest), sums[j]) : sums[j], rest);
    }
  }
}

template <class Ops>
void multiply_panels(const PanelTile& t) {
  constexpr int M = Ops::rows, N = Ops::vectors;
  typename Ops::F acc[M][N];
#pragma GCC unroll 12
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) acc[i][j] = Ops::zero();
  }
  for (std::int64_t i = 0; i < t.rows; ++i) {  // c is probably in no near cache
    for (std::int64_t j = 0; j < t.cols; j += 16) __builtin_prefetch(t.c + i * t.c_stride + j, 1, 3);
  }
  const PanelUnit *a = t.a, *b = t.b;
  for (std::int64_t k = 0; k < t.depth; ++k, a += M, b += N * Ops::width) {
    typename Ops::X w[N];
#pragma GCC unroll 3
    for (int j = 0; j < N; ++j) w[j] = Ops::load_units(b + j * Ops::width);
#pragma GCC unroll 12
    for (int i = 0; i < M; ++i) {
      const typename Ops::X x = Ops::repeat(a + i);
#pragma GCC unroll 3
      for (int j = 0; j < N; ++j) acc[i][j] = Ops::fma(x, w[j], acc[i][j]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < M; ++i) {
    if (i < t.rows) finish_panel_row<Ops, N>(acc[i], t.cols, t.adds, t.c + i * t.c_stride);
  }
}

/// x [depth][width] as panels [units][panel]. Ops::pack_pair makes the units of one row, or of two for a
/// pair: `next` is null if there is no second one.
template <class Ops, std::int64_t panel>
void pack_straight(const PanelSource& s, PanelUnit* out) {
  constexpr std::int64_t ahead =
      panel > 16 ? 8 : 16;  // rows that are asked for before they are needed: they lie far apart
  for (std::int64_t d = 0; d < s.depth; d += Ops::values, out += panel) {
    const float* row = s.x + d * s.stride;
    for (std::int64_t r = d + ahead; r < d + ahead + Ops::values && r < s.depth; ++r) {
      for (std::int64_t i = 0; i < s.width; i += 16) __builtin_prefetch(s.x + r * s.stride + i, 0, 3);
    }
    const float* next = d + 1 < s.depth ? row + s.stride : nullptr;
    PanelUnit* to = out;
    for (std::int64_t i = 0; i < s.width; i += panel, to += s.panel_stride) {
      const std::int64_t count = s.width - i < panel ? s.width - i : panel;
      Ops::template pack_pair<panel>(row + i, next != nullptr ? next + i : nullptr, count, to);
    }
  }
}

/// Four units of four rows, transposed: out[k * panel + row].
inline void transpose4(const PanelUnit* const* rows, std::int64_t k, std::int64_t panel, PanelUnit* out) {
  __m128 a = _mm_loadu_ps(reinterpret_cast<const float*>(rows[0] + k));
  __m128 b = _mm_loadu_ps(reinterpret_cast<const float*>(rows[1] + k));
  __m128 c = _mm_loadu_ps(reinterpret_cast<const float*>(rows[2] + k));
  __m128 d = _mm_loadu_ps(reinterpret_cast<const float*>(rows[3] + k));
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(reinterpret_cast<float*>(out), a);
  _mm_storeu_ps(reinterpret_cast<float*>(out + panel), b);
  _mm_storeu_ps(reinterpret_cast<float*>(out + 2 * panel), c);
  _mm_storeu_ps(reinterpret_cast<float*>(out + 3 * panel), d);
}

/// x [width][depth] as one panel [units][panel], a few units at a time: first each row's units, then
/// transposed.
template <class Ops, std::int64_t panel>
void transpose_panel(const float* x, std::int64_t width, const PanelSource& s, PanelUnit* out) {
  constexpr std::int64_t most = 64;
  alignas(64)
      PanelUnit units[panel][most + 16] = {};  // rows that there aren't stay zero; 16: other sets of L1
  for (std::int64_t d = 0; d < s.depth; d += most * Ops::values) {
    const std::int64_t values = s.depth - d < most * Ops::values ? s.depth - d : most * Ops::values;
    const std::int64_t count = (values + Ops::values - 1) / Ops::values;
    for (std::int64_t i = 0; i < width; ++i) Ops::convert(x + i * s.stride + d, values, units[i]);
    for (std::int64_t i = 0; i < panel; i += 4) {
      const PanelUnit* const rows[4] = {units[i], units[i + 1], units[i + 2], units[i + 3]};
      std::int64_t k = 0;
      for (; k + 4 <= count; k += 4) transpose4(rows, k, panel, out + k * panel + i);
      for (; k < count; ++k) {
        for (std::int64_t r = 0; r < 4; ++r) out[k * panel + i + r] = rows[r][k];
      }
    }
    out += count * panel;
  }
}

template <class Ops, std::int64_t panel>
void pack_transposed(const PanelSource& s, PanelUnit* out) {
  for (std::int64_t i = 0; i < s.width; i += panel, out += s.panel_stride)
    transpose_panel<Ops, panel>(s.x + i * s.stride, s.width - i < panel ? s.width - i : panel, s, out);
}

template <class Ops>
constexpr PanelKernels make_panels() {
  constexpr std::int64_t cols = Ops::vectors * Ops::width;
  return {Ops::rows,
          cols,
          Ops::values,
          multiply_panels<Ops>,
          pack_straight<Ops, Ops::rows>,
          pack_transposed<Ops, Ops::rows>,
          pack_straight<Ops, cols>,
          pack_transposed<Ops, cols>};
}

}  // namespace
}  // namespace mla
