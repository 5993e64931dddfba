#pragma once
#include <string_view>

namespace mla {

/// Instruction sets that kernels are written for, best last.
enum class Isa { scalar, avx2, avx512, avx512_bf16 };

/// "scalar", "avx2", "avx512" or "avx512bf16".
const char* name_of(Isa isa);

/// Whether this CPU and operating system can run `isa`: avx2 means AVX2 and FMA; avx512 means F, BW, DQ
/// and VL too; avx512_bf16 means that it also multiplies bf16 pairs (BF16) and quadruples of bytes (VNNI) and
/// looks bytes up in tables (VBMI), as Zen 4, Sapphire Rapids and later ones do.
bool supports(Isa isa);

/// The set in use, chosen once: the best supported one, or what the environment variable MLA_ISA names.
/// Throws Error if MLA_ISA names an unknown set or one that this CPU lacks.
Isa selected_isa();

/// What selected_isa() does with the value of MLA_ISA (empty: not set).
Isa choose_isa(std::string_view wanted);

}  // namespace mla
