#pragma once
#include <immintrin.h>

namespace mla {
namespace {

/// 32 values of bf16 as the instructions for pairs take them.
inline __m512bh as_pairs(__m512i x) {
  return reinterpret_cast<__m512bh>(x);
}

}  // namespace
}  // namespace mla
