#pragma once
#include <cstddef>
#include <cstdint>

namespace mla {

// The loops behind peak.h. Each runs `rounds` rounds and returns the operations done.
// One definition per instruction-set file; to be called where the CPU supports it.
std::int64_t peak_avx2_f32(std::int64_t rounds);
std::int64_t peak_avx512_f32(std::int64_t rounds);
std::int64_t peak_avx512_bf16(std::int64_t rounds);
std::int64_t peak_avx512_int8(std::int64_t rounds);
/// Reads `bytes` bytes, a multiple of 512, as four streams with the widest loads.
void read_avx2(const std::byte* data, std::int64_t bytes);
void read_avx512(const std::byte* data, std::int64_t bytes);

}  // namespace mla
