#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/terminal.h"
#include "mla/cache/page_pool.h"
#include "mla/core/buffer.h"
#include "mla/core/dtype.h"
#include "mla/kernels/peak.h"

/// What the benchmarks share: timing, ceilings measured beside the work, and the report.
namespace mla::app {

/// One call to be timed, and what it does.
struct BenchWork {
  std::string name;
  std::string op;
  DType type;                     ///< of the rows or weights; chooses the ceiling
  double operations = 0;          ///< of one call, two for each multiply-add that counts
  std::int64_t bytes = 0;         ///< of rows or weights that one call reads
  bool cold = false;              ///< whether they come from memory, not from a cache
  nlohmann::ordered_json fields;  ///< further fields of the entry
  std::function<void()> call;
  double tokens = 0;  ///< of one call; 0: the report says nothing of tokens
};

/// Times work between two measurements of its ceilings, and prints: rows of a table as they are ready, or one
/// JSON array at the end.
class Bench {
 public:
  Bench(const BenchOptions& options, std::int64_t entries);
  void run(const BenchWork& work);
  void finish();

  std::int64_t threads() const { return threads_; }

 private:
  struct Ceilings {
    double operations = 0, bytes = 0;  // per second
  };
  void raise(Ceilings& ceilings, const BenchWork& work);
  double median_seconds(const BenchWork& work, std::int64_t& calls) const;

  const BenchOptions& options_;
  int threads_;
  PeakTiming timing_;
  Buffer<std::byte> memory_;  // what the read ceiling reads
  nlohmann::ordered_json entries_ = nlohmann::ordered_json::array();
  Progress progress_;
};

/// Bytes of distinct data after which a linear reader finds nothing in the caches any more.
std::int64_t bytes_beyond_caches();

/// Throws Error if `bytes` more don't fit into memory.
void check_bench_fits(std::int64_t bytes);

/// The name by which the system knows the processor, with family and model: some virtual machines tell no
/// more than whose it is.
std::string cpu_name();

/// Normally distributed values, and rows of them from anywhere in a table: quick, and never the same twice.
class RandomValues {
 public:
  /// Values of different seeds are independent of each other.
  explicit RandomValues(std::int64_t longest, std::uint32_t seed = 1);
  /// `count` values, at most `longest`; valid until this object goes away.
  const float* next(std::int64_t count);
  void fill(float* out, std::int64_t count);

 private:
  std::vector<float> table_;
  std::uint64_t state_ = 1;
};

/// Random values stored as `type`, f32 or bf16. Throws Error if they don't fit into memory.
Buffer<std::byte> random_weights(DType type, std::int64_t values);

/// A pool whose free pages lie in shuffled order, so that a cache's neighbouring pages are no neighbours.
std::shared_ptr<PagePool> shuffled_pool(const RowLayout& layout, std::int64_t page_rows, std::int64_t pages);

}  // namespace mla::app
