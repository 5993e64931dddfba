#pragma once
#include <cstdint>

#include "mla/core/dtype.h"

namespace mla {

/// Tokens of one gemm_block call: the lanes of one 512-bit vector.
constexpr std::int64_t gemm_tokens = 16;

/// Element type that gemm_block multiplies when the model computes in `compute`: bf16 where the CPU
/// multiplies bf16 pairs, else f32 (of values already rounded to `compute`).
DType gemm_type(DType compute);

/// c[n][16] = a [n, k] (row stride lda) times the transpose of b [16, k], sums over the full depth in f32.
/// `a` and `b` hold elements of `type`, which gemm_type returned. Of each c[n], only the first `tokens`
/// values need be right. Single-threaded; oneDNN does the work, or plain loops when MLA_ISA=scalar. For one
/// (type, n, k, lda) the same instructions make each value, whatever `tokens` is.
void gemm_block(DType type, std::int64_t n, std::int64_t k, const void* a, std::int64_t lda, const void* b,
                std::int64_t tokens, float* c);

}  // namespace mla
