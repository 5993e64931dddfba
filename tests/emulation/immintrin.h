#pragma once
// The AVX-512 intrinsics that our kernels use, in plain C++ and AVX2, for a build that tests these kernels on
// CPUs without AVX-512 (MLA_EMULATE_AVX512, scripts/test-emulated). They mean what Intel's Intrinsics Guide
// says. Being names of mla they hide those of the compiler's header, which are global.
#include_next <immintrin.h>

#include "emulation/floats.h"
#include "emulation/integers.h"
#include "emulation/memory.h"
#include "emulation/places.h"

namespace mla {
using namespace emulation;
}
