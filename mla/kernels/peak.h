#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "mla/core/cpu.h"
#include "mla/core/dtype.h"

namespace mla {

// What this CPU can do at most, measured: the ceilings that benchmarks divide by.

/// Multiply-adds of one kind and nothing else: as many independent chains as the registers hold, no memory.
struct PeakKernel {
  DType type;               ///< of the factors; sums are f32, or 32-bit integers for int8
  Isa isa;                  ///< what the CPU must support, beside the instruction itself
  const char* instruction;  ///< "mulps + addps", "vfmadd (256 bits)", ...
  /// Runs `rounds` rounds; returns the operations done, two for each multiply-add.
  std::int64_t (*run)(std::int64_t rounds);
};

/// All that this CPU can run: f32 with each instruction set, then bf16 and int8 where there are instructions.
std::vector<PeakKernel> peak_kernels();

/// The fastest kernel that arithmetic on rows or weights of `type` could be made of with the instruction set
/// `isa`: f32 where the CPU has no instruction for the type. fp8 counts as bf16, which it is expanded to.
PeakKernel peak_kernel(DType type, Isa isa = selected_isa());

/// How long to measure: the best of `repeats`, each at least `seconds` long.
struct PeakTiming {
  double seconds = 0.05;
  int repeats = 5;
};

/// Operations per second of `threads` threads together.
double peak_operations(const PeakKernel& kernel, int threads, PeakTiming timing = {});

/// Bytes per second that `threads` threads read together, each its own part of `memory`, over and over, as
/// four linear streams side by side (faster than one). Memory that fits into a cache gives that cache's
/// bandwidth.
double peak_read(std::span<const std::byte> memory, int threads, PeakTiming timing = {});

}  // namespace mla
