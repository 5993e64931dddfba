// The mathematics of the leaf kernels, written once over `Lanes`. Each instruction-set file defines its own
// Lanes in an anonymous namespace and then includes this file, so that no code compiled for one CPU is ever
// linked into another's path: everything here is in that anonymous namespace too, and no std container or
// algorithm is used.
//
// Lanes is `width` floats side by side (F) with: zero, set, load, load_part(p, n), store, store_part, add,
// sub, mul, fma(a, b, c) = a * b + c, div, exp, reduce_add; load and load_part take float or
// bf16, store_part and store too.
#include "mla/kernels/leaf.h"

namespace mla {
namespace {

using F = Lanes::F;
constexpr std::int64_t W = Lanes::width;

float dot(const float* a, const float* b, std::int64_t n) {
  F sum = Lanes::zero();
  std::int64_t i = 0;
  for (; i + W <= n; i += W) sum = Lanes::fma(Lanes::load(a + i), Lanes::load(b + i), sum);
  if (i < n) sum = Lanes::fma(Lanes::load_part(a + i, n - i), Lanes::load_part(b + i, n - i), sum);
  return Lanes::reduce_add(sum);
}

/// scores[0..R) = dot(query, key of row r). Each row's sum runs over the features in the same order whatever
/// R is.
template <int R, class T>
void dot_rows(const float* query, const std::byte* const* rows, std::int64_t key_offset, std::int64_t n,
              float* scores) {
  const T* key[R];
  F sum[R];
  for (int r = 0; r < R; ++r) {
    key[r] = reinterpret_cast<const T*>(rows[r] + key_offset);
    sum[r] = Lanes::zero();
  }
  std::int64_t i = 0;
  for (; i + W <= n; i += W) {
    const F q = Lanes::load(query + i);
    for (int r = 0; r < R; ++r) sum[r] = Lanes::fma(q, Lanes::load(key[r] + i), sum[r]);
  }
  if (i < n) {
    const F q = Lanes::load_part(query + i, n - i);
    for (int r = 0; r < R; ++r) sum[r] = Lanes::fma(q, Lanes::load_part(key[r] + i, n - i), sum[r]);
  }
  for (int r = 0; r < R; ++r) scores[r] = Lanes::reduce_add(sum[r]);
}

/// acc[0..N*W) = acc * correction + sum over rows of p[r] * value[r], for N vectors of features from `begin`.
template <int N, class T>
void add_values(const AttendTile& tile, const float* p, std::int64_t begin, float correction, float* acc) {
  F sum[N];
  for (int j = 0; j < N; ++j) sum[j] = Lanes::mul(Lanes::set(correction), Lanes::load(acc + begin + j * W));
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    const T* value = reinterpret_cast<const T*>(tile.rows[r] + tile.value_offset) + begin;
    const F weight = Lanes::set(p[r]);
    for (int j = 0; j < N; ++j) sum[j] = Lanes::fma(weight, Lanes::load(value + j * W), sum[j]);
  }
  for (int j = 0; j < N; ++j) Lanes::store(acc + begin + j * W, sum[j]);
}

template <class T>
void add_values_tail(const AttendTile& tile, const float* p, std::int64_t begin, float correction,
                     float* acc) {
  const std::int64_t n = tile.d_v - begin;
  F sum = Lanes::mul(Lanes::set(correction), Lanes::load_part(acc + begin, n));
  for (std::int64_t r = 0; r < tile.num_rows; ++r) {
    const T* value = reinterpret_cast<const T*>(tile.rows[r] + tile.value_offset) + begin;
    sum = Lanes::fma(Lanes::set(p[r]), Lanes::load_part(value, n), sum);
  }
  Lanes::store_part(acc + begin, sum, n);
}

/// Turns scores into exp(score - new maximum), in place, and returns exp(old maximum - new maximum).
inline float softmax_step(float* scores, std::int64_t n, float scale, float* max, float* sum) {
  float top = *max;
  for (std::int64_t r = 0; r < n; ++r) {
    scores[r] *= scale;
    top = scores[r] > top ? scores[r] : top;
  }
  const std::int64_t padded = (n + W - 1) / W * W;
  for (std::int64_t r = n; r < padded; ++r) scores[r] = -__builtin_inff();
  F total = Lanes::zero();
  for (std::int64_t r = 0; r < padded; r += W) {
    const F p = Lanes::exp(Lanes::sub(Lanes::load(scores + r), Lanes::set(top)));
    Lanes::store(scores + r, p);
    total = Lanes::add(total, p);
  }
  float shift[W];
  Lanes::store(shift, Lanes::exp(Lanes::set(*max - top)));
  *sum = *sum * shift[0] + Lanes::reduce_add(total);
  *max = top;
  return shift[0];
}

template <class T>
void attend(const AttendTile& tile) {
  alignas(64) float scores[AttendTile::max_rows + W];
  for (std::int64_t h = 0; h < tile.heads; ++h) {
    const float* query = tile.query + h * tile.query_stride;
    std::int64_t r = 0;
    for (; r + 4 <= tile.num_rows; r += 4) {
      dot_rows<4, T>(query, tile.rows + r, tile.key_offset, tile.d_qk, scores + r);
    }
    for (; r < tile.num_rows; ++r)
      dot_rows<1, T>(query, tile.rows + r, tile.key_offset, tile.d_qk, scores + r);

    const float correction = softmax_step(scores, tile.num_rows, tile.scale, tile.max + h, tile.sum + h);

    float* acc = tile.acc + h * tile.d_v;
    std::int64_t i = 0;
    for (; i + 4 * W <= tile.d_v; i += 4 * W) add_values<4, T>(tile, scores, i, correction, acc);
    for (; i + W <= tile.d_v; i += W) add_values<1, T>(tile, scores, i, correction, acc);
    if (i < tile.d_v) add_values_tail<T>(tile, scores, i, correction, acc);
  }
}

void rms_norm(const float* x, const float* weight, float epsilon, float* out, std::int64_t n) {
  const float scale = 1.0f / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + epsilon);
  const F s = Lanes::set(scale);
  std::int64_t i = 0;
  for (; i + W <= n; i += W) {
    Lanes::store(out + i, Lanes::mul(Lanes::mul(Lanes::load(x + i), s), Lanes::load(weight + i)));
  }
  if (i < n) {
    const F value =
        Lanes::mul(Lanes::mul(Lanes::load_part(x + i, n - i), s), Lanes::load_part(weight + i, n - i));
    Lanes::store_part(out + i, value, n - i);
  }
}

inline F silu_times(F gate, F up) {
  const F one = Lanes::set(1.0f);
  return Lanes::mul(Lanes::div(gate, Lanes::add(one, Lanes::exp(Lanes::sub(Lanes::zero(), gate)))), up);
}

void swiglu(const float* gate, const float* up, float* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) Lanes::store(out + i, silu_times(Lanes::load(gate + i), Lanes::load(up + i)));
  if (i < n) {
    Lanes::store_part(out + i, silu_times(Lanes::load_part(gate + i, n - i), Lanes::load_part(up + i, n - i)),
                      n - i);
  }
}

void add_scaled(const float* x, float scale, float* y, std::int64_t n) {
  const F s = Lanes::set(scale);
  std::int64_t i = 0;
  for (; i + W <= n; i += W) Lanes::store(y + i, Lanes::fma(s, Lanes::load(x + i), Lanes::load(y + i)));
  if (i < n) {
    Lanes::store_part(y + i, Lanes::fma(s, Lanes::load_part(x + i, n - i), Lanes::load_part(y + i, n - i)),
                      n - i);
  }
}

void bf16_to_f32(const bf16* x, float* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) Lanes::store(out + i, Lanes::load(x + i));
  if (i < n) Lanes::store_part(out + i, Lanes::load_part(x + i, n - i), n - i);
}

void f32_to_bf16(const float* x, bf16* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) Lanes::store(out + i, Lanes::load(x + i));
  if (i < n) Lanes::store_part(out + i, Lanes::load_part(x + i, n - i), n - i);
}

constexpr LeafKernels make_kernels(Isa isa) {
  return {isa, attend<float>, attend<bf16>, rms_norm, swiglu, add_scaled, bf16_to_f32, f32_to_bf16, dot};
}

}  // namespace
}  // namespace mla
