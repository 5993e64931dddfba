// The mathematics of the leaf kernels, written once over `Lanes`. Each instruction-set file defines its own
// Lanes in an anonymous namespace and then includes this file, so that no code compiled for one CPU is ever
// linked into another's path: everything here is in that anonymous namespace too, and no std container or
// algorithm is used.
//
// Lanes is `width` floats side by side (F) with: zero, set, load, load_part(p, n), store, store_part, add,
// sub, mul, fma(a, b, c) = a * b + c, div, max (b where a or b is NaN), exp, reduce_add; load and load_part
// take float or bf16, store_part and store too; load_f16 and load_f8 take the codes of those (dtype.h).
//
// The vector sets have more for product_math.h and attend_math.h: repeat<P>(p), P floats from p over and
// over; even(a, b) and odd(a, b), the values at even or odd places of each 128 bits of a, then those of b;
// swap_neighbours and swap_pairs of each 128 bits; add_quads, where_less.
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

/// With r = 1 / sqrt(mean(x^2) + epsilon), out[i] = x[i] r weight[i], and r depends on each x: dr / dx[i] =
/// -r^3 x[i] / n. So d_x[i] = r (weight[i] d_out[i] - x[i] r^2 / n * sum over j of x[j] weight[j] d_out[j]).
void rms_norm_backward(const float* x, const float* weight, float epsilon, const float* d_out, float* d_x,
                       float* d_weight, std::int64_t n) {
  const float r = 1.0f / __builtin_sqrtf(dot(x, x, n) / static_cast<float>(n) + epsilon);
  F sum = Lanes::zero();
  std::int64_t i = 0;
  for (; i + W <= n; i += W)
    sum = Lanes::fma(Lanes::mul(Lanes::load(x + i), Lanes::load(weight + i)), Lanes::load(d_out + i), sum);
  if (i < n) {
    const F product = Lanes::mul(Lanes::load_part(x + i, n - i), Lanes::load_part(weight + i, n - i));
    sum = Lanes::fma(product, Lanes::load_part(d_out + i, n - i), sum);
  }
  const F scale = Lanes::set(r), pull = Lanes::set(-r * r * Lanes::reduce_add(sum) / static_cast<float>(n));
  const auto gradient = [&](F v, F w, F d) { return Lanes::fma(v, pull, Lanes::mul(w, d)); };
  for (i = 0; i + W <= n; i += W) {
    const F v = Lanes::load(x + i), d = Lanes::load(d_out + i);
    const F g = gradient(v, Lanes::load(weight + i), d);
    Lanes::store(d_x + i, Lanes::fma(g, scale, Lanes::load(d_x + i)));
    Lanes::store(d_weight + i, Lanes::fma(Lanes::mul(v, scale), d, Lanes::load(d_weight + i)));
  }
  if (i < n) {
    const F v = Lanes::load_part(x + i, n - i), d = Lanes::load_part(d_out + i, n - i);
    const F g = gradient(v, Lanes::load_part(weight + i, n - i), d);
    Lanes::store_part(d_x + i, Lanes::fma(g, scale, Lanes::load_part(d_x + i, n - i)), n - i);
    Lanes::store_part(d_weight + i,
                      Lanes::fma(Lanes::mul(v, scale), d, Lanes::load_part(d_weight + i, n - i)), n - i);
  }
}

struct GateUp {
  F gate, up;
};

/// With s = 1 / (1 + exp(-gate)), silu' = s (1 + gate (1 - s)).
inline GateUp swiglu_gradient(F gate, F up, F d) {
  const F one = Lanes::set(1.0f);
  const F s = Lanes::div(one, Lanes::add(one, Lanes::exp(Lanes::sub(Lanes::zero(), gate))));
  const F slope = Lanes::mul(s, Lanes::fma(gate, Lanes::sub(one, s), one));
  return {Lanes::mul(Lanes::mul(d, up), slope), Lanes::mul(d, Lanes::mul(gate, s))};
}

void swiglu_backward(const float* gate, const float* up, const float* d_out, float* d_gate, float* d_up,
                     std::int64_t n) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) {
    const GateUp d = swiglu_gradient(Lanes::load(gate + i), Lanes::load(up + i), Lanes::load(d_out + i));
    Lanes::store(d_gate + i, d.gate);
    Lanes::store(d_up + i, d.up);
  }
  if (i < n) {
    const GateUp d = swiglu_gradient(Lanes::load_part(gate + i, n - i), Lanes::load_part(up + i, n - i),
                                     Lanes::load_part(d_out + i, n - i));
    Lanes::store_part(d_gate + i, d.gate, n - i);
    Lanes::store_part(d_up + i, d.up, n - i);
  }
}

ExpSum exp_sum(const float* x, float scale, std::int64_t n) {
  const F s = Lanes::set(scale);
  F tops = Lanes::set(scale * x[0]);
  std::int64_t i = 0;
  for (; i + W <= n; i += W) tops = Lanes::max(tops, Lanes::mul(Lanes::load(x + i), s));
  float lanes[W];
  Lanes::store(lanes, tops);
  float top = lanes[0];
  for (std::int64_t j = 1; j < W; ++j) top = lanes[j] > top ? lanes[j] : top;
  for (; i < n; ++i) top = scale * x[i] > top ? scale * x[i] : top;

  const F minus_top = Lanes::set(-top);
  F sums = Lanes::zero();
  for (i = 0; i + W <= n; i += W)
    sums = Lanes::add(sums, Lanes::exp(Lanes::fma(Lanes::load(x + i), s, minus_top)));
  if (i < n) {
    const F rest = Lanes::exp(Lanes::fma(Lanes::load_part(x + i, n - i), s, minus_top));
    Lanes::store(lanes, Lanes::zero());
    Lanes::store_part(lanes, rest, n - i);  // what lies behind the end adds nothing
    sums = Lanes::add(sums, Lanes::load(lanes));
  }
  return {top, Lanes::reduce_add(sums)};
}

void softmax(const float* x, float scale, ExpSum all, float factor, float* out, std::int64_t n) {
  const F s = Lanes::set(scale), minus_top = Lanes::set(-all.top), f = Lanes::set(factor / all.sum);
  std::int64_t i = 0;
  for (; i + W <= n; i += W)
    Lanes::store(out + i, Lanes::mul(Lanes::exp(Lanes::fma(Lanes::load(x + i), s, minus_top)), f));
  if (i < n) {
    const F rest = Lanes::exp(Lanes::fma(Lanes::load_part(x + i, n - i), s, minus_top));
    Lanes::store_part(out + i, Lanes::mul(rest, f), n - i);
  }
}

void f16_to_f32(const std::uint16_t* x, float* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) Lanes::store(out + i, Lanes::load_f16(x + i));
  for (; i < n; ++i) out[i] = f16_to_float(x[i]);
}

void f8_to_f32(const std::uint8_t* codes, float scale, float* out, std::int64_t n) {
  const F s = Lanes::set(scale);
  std::int64_t i = 0;
  for (; i + W <= n; i += W) Lanes::store(out + i, Lanes::mul(Lanes::load_f8(codes + i), s));
  for (; i < n; ++i) out[i] = f8_e4m3_to_float(codes[i]) * scale;
}

void i8_to_f32(const std::int8_t* codes, float scale, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(codes[i]) * scale;
}

constexpr LeafKernels make_kernels(Isa isa) {
  return {isa,       rms_norm,  swiglu, add_scaled,        bf16_to_f32,     f32_to_bf16, f16_to_f32,
          f8_to_f32, i8_to_f32, dot,    rms_norm_backward, swiglu_backward, exp_sum,     softmax};
}

}  // namespace
}  // namespace mla
