#include "mla/kernels/peak.h"

#include <omp.h>

#include <algorithm>

#include "mla/core/clock.h"
#include "mla/core/error.h"
#include "mla/kernels/peak_loops.h"

namespace mla {
namespace {

/// Four f32 lanes, which every x86-64 has.
using Lanes4 = float __attribute__((vector_size(16)));

/// The same anywhere in memory.
using UnalignedLanes4 = float __attribute__((vector_size(16), aligned(1)));

constexpr std::int64_t block = 512;  // bytes that the readers take at a time

std::int64_t peak_scalar_f32(std::int64_t rounds) {
  constexpr int chains = 10;
  Lanes4 sums[chains] = {};
  Lanes4 x = {0.5f, 0.5f, 0.5f, 0.5f};
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 10
    for (int i = 0; i < chains; ++i) {
      Lanes4 product = x * x;
      asm volatile("" : "+x"(product));  // or the product would be made once
      sums[i] += product;
      asm volatile("" : "+x"(sums[i]));
    }
  }
  return rounds * chains * 4 * 2;
}

void read_scalar(const std::byte* data, std::int64_t bytes) {
  for (std::int64_t at = 0; at < bytes / 4; at += block / 4) {
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) {
      const std::byte* const from = data + i / 8 * (bytes / 4) + at + i % 8 * 16;
      const Lanes4 value = *reinterpret_cast<const UnalignedLanes4*>(from);
      asm volatile("" : : "x"(value));
    }
  }
}

/// The highest rate that `run(thread, rounds)` on every thread reaches; it returns the units it did.
template <class Run>
double best_rate(int threads, PeakTiming timing, const Run& run) {
  require(threads >= 1 && threads <= 1024, "peak: found {} threads, expected 1 to 1024", threads);
  double best = 0;
  std::int64_t rounds = 1;
  for (int done = 0; done < timing.repeats;) {
    std::int64_t units = 0;
    const double begin = seconds_now();
#pragma omp parallel num_threads(threads) reduction(+ : units)
    units += run(omp_get_thread_num(), omp_get_num_threads(), rounds);
    const double took = std::max(seconds_now() - begin, 1e-9);
    best = std::max(best, static_cast<double>(units) / took);
    if (took >= 0.8 * timing.seconds) {
      ++done;
    } else {  // too short to tell: more rounds, as many as this one's pace asks for
      const double factor = std::clamp(timing.seconds / took, 1.5, 100.0);
      rounds = static_cast<std::int64_t>(static_cast<double>(rounds) * factor) + 1;
    }
  }
  return best;
}

}  // namespace

std::vector<PeakKernel> peak_kernels() {
  std::vector<PeakKernel> kernels = {{DType::f32, Isa::scalar, "mul + add, 128 bits", peak_scalar_f32}};
  if (supports(Isa::avx2)) kernels.push_back({DType::f32, Isa::avx2, "fma, 256 bits", peak_avx2_f32});
  if (supports(Isa::avx512)) kernels.push_back({DType::f32, Isa::avx512, "fma, 512 bits", peak_avx512_f32});
  if (supports(Isa::avx512_bf16)) {
    kernels.push_back({DType::bf16, Isa::avx512_bf16, "vdpbf16ps, 512 bits", peak_avx512_bf16});
    kernels.push_back({DType::i8, Isa::avx512_bf16, "vpdpbusd, 512 bits", peak_avx512_int8});
  }
  return kernels;
}

PeakKernel peak_kernel(DType type, Isa isa) {
  const DType wanted = type == DType::f8_e4m3 ? DType::bf16 : type;
  const std::vector<PeakKernel> kernels = peak_kernels();
  PeakKernel found = kernels.front();
  for (const PeakKernel& kernel : kernels) {
    if (kernel.isa <= isa && (kernel.type == DType::f32 || kernel.type == wanted)) found = kernel;
  }
  return found;
}

double peak_operations(const PeakKernel& kernel, int threads, PeakTiming timing) {
  return best_rate(threads, timing, [&](int, int, std::int64_t rounds) { return kernel.run(1000 * rounds); });
}

double peak_read(std::span<const std::byte> memory, int threads, PeakTiming timing) {
  const auto bytes = static_cast<std::int64_t>(memory.size());
  require(bytes >= block * threads, "peak: found {} bytes to read, expected at least {} for {} threads",
          bytes, block * threads, threads);
  const auto read = supports(Isa::avx512) ? read_avx512 : supports(Isa::avx2) ? read_avx2 : read_scalar;
  return best_rate(threads, timing, [&](int thread, int count, std::int64_t rounds) {
    const std::int64_t part = bytes / count / block * block;
    for (std::int64_t round = 0; round < rounds; ++round) read(memory.data() + thread * part, part);
    return rounds * part;
  });
}

}  // namespace mla
