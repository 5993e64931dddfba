#pragma once
// The exponential of the vector instruction sets, written once over their `Lanes` (see leaf_math.h): in an
// anonymous namespace, since each instruction-set file has its own.

namespace mla {
namespace {

/// e^x to about 1 unit in the last place: x = k ln 2 + r, |r| <= ln 2 / 2, a polynomial of degree 6 in r,
/// times 2^k. 0 below -87.3 (where results would be subnormal), inf above 88.7, NaN for NaN.
template <class L>
typename L::F polynomial_exp(typename L::F x) {
  using F = typename L::F;
  const F k = L::round(L::mul(x, L::set(1.44269504f)));
  F r = L::fma(k, L::set(-0.693359375f), x);  // ln 2 in two parts, the first exact in 9 bits
  r = L::fma(k, L::set(2.12194440e-4f), r);
  F p = L::set(1.0f / 720);
  p = L::fma(p, r, L::set(1.0f / 120));
  p = L::fma(p, r, L::set(1.0f / 24));
  p = L::fma(p, r, L::set(1.0f / 6));
  p = L::fma(p, r, L::set(0.5f));
  p = L::fma(p, r, L::set(1.0f));
  p = L::fma(p, r, L::set(1.0f));
  return L::where_in_range(x, -87.33654f, 88.72284f, L::times_power_of_two(p, k));
}

}  // namespace
}  // namespace mla
