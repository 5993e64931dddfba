// The oracle: one float at a time, exp from the C library.
#include <cmath>
#include <cstdint>

#include "mla/core/dtype.h"

namespace mla {
namespace {

struct Lanes {
  using F = float;
  static constexpr int width = 1;
  static F zero() { return 0.0f; }
  static F set(float value) { return value; }
  static F load(const float* p) { return *p; }
  static F load(const bf16* p) { return to_float(*p); }
  static F load_part(const float* p, std::int64_t) { return *p; }
  static F load_part(const bf16* p, std::int64_t) { return to_float(*p); }
  static void store(float* p, F value) { *p = value; }
  static void store(bf16* p, F value) { *p = to_bf16(value); }
  static void store_part(float* p, F value, std::int64_t) { *p = value; }
  static void store_part(bf16* p, F value, std::int64_t) { *p = to_bf16(value); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F exp(F x) { return std::exp(x); }
  static float reduce_add(F x) { return x; }
};

}  // namespace
}  // namespace mla

#include "mla/kernels/leaf_math.h"

namespace mla {

const LeafKernels scalar_kernels = make_kernels(Isa::scalar);

}  // namespace mla
