#pragma once
#include <cstdint>

namespace mla {

/// Tokens of one gemm_block call: the lanes of one 512-bit vector.
constexpr std::int64_t gemm_tokens = 16;

/// c[n][16] = a [n, k] times the transpose of b [16, k], f32, sums over the full depth. Of each c[n], only
/// the first `tokens` values need be right. Single-threaded; oneDNN does the work, or plain loops when
/// MLA_ISA=scalar. For one (n, k) the same instructions make each value, whatever `tokens` is: the tokens lie
/// side by side in vector lanes.
void gemm_block(std::int64_t n, std::int64_t k, const float* a, const float* b, std::int64_t tokens,
                float* c);

}  // namespace mla
