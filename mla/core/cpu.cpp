#include "mla/core/cpu.h"

#include <cpuid.h>

#include <cstdlib>

#include "mla/core/error.h"

namespace mla {
namespace {

#ifdef MLA_EMULATE_AVX512
constexpr bool is_emulated = true;  // a build for tests: AVX-512 as loops
#else
constexpr bool is_emulated = false;
#endif

constexpr Isa best_first[] = {Isa::avx512_bf16, Isa::avx512, Isa::avx2, Isa::scalar};

/// Every CPU with AVX2 has it, but it has a bit of its own, which clang 14's __builtin_cpu_supports does not
/// know.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_bf16:
      return "avx512bf16";
  }
  return "?";
}

bool supports(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case Isa::avx512:
      return supports(Isa::avx2) &&
             (is_emulated || (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")));
    case Isa::avx512_bf16:
      return supports(Isa::avx512) &&
             (is_emulated || (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
                              __builtin_cpu_supports("avx512vbmi")));
  }
  return false;
}

Isa choose_isa(std::string_view wanted) {
  for (const Isa isa : best_first) {
    if (wanted.empty() && supports(isa)) return isa;
    if (wanted != name_of(isa)) continue;
    require(supports(isa), "MLA_ISA: this CPU lacks {}", wanted);
    return isa;
  }
  fail("MLA_ISA: found '{}', expected scalar, avx2, avx512 or avx512bf16", wanted);
}

Isa selected_isa() {
  static const Isa isa = [] {
    const char* wanted = std::getenv("MLA_ISA");
    return choose_isa(wanted ? wanted : "");
  }();
  return isa;
}

}  // namespace mla
