#pragma once
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace mla {

/// Threads that parallel_for uses: what set_threads asked for, else what OpenMP would take, one per processor
/// unless OMP_NUM_THREADS or omp_set_num_threads says otherwise.
int threads();

/// Sets the number of threads for the calling thread's parallel_for; at least 1, at most 1024 (Error
/// otherwise).
void set_threads(int count);

/// Multiply-adds below which waking other threads costs more than it saves: some ten microseconds of one
/// core.
constexpr std::int64_t worth_threads = 1 << 20;

/// Multiply-adds in whose time a value is read, changed a little and written: caches take as long for it.
constexpr std::int64_t work_of_value = 16;
/// The same with an exponential.
constexpr std::int64_t work_of_exp = 32;

/// Pieces that a kernel cuts its work into, if it can, so that the threads end together: one inside another
/// parallel_for.
inline std::int64_t wanted_pieces() {
  return omp_in_parallel() ? 1 : 4 * threads();
}

/// Multiply-adds that a thread takes at a time, if there are so many: else taking them costs more than doing
/// them.
constexpr std::int64_t worth_taking = 1 << 15;

/// [0, count) in even parts, one for each thread, which takes from the others' when its own is done. So a
/// thread comes by the same i in each of several loops over the same rows, and finds in its core's caches
/// what it left there.
class SharedRange {
 public:
  static constexpr int most_parts = 64;

  SharedRange(std::int64_t count, int parts) : parts_(parts) {
    for (int i = 0; i < parts; ++i) {
      part_[i].next.store(count * i / parts, std::memory_order_relaxed);
      part_[i].end = count * (i + 1) / parts;
    }
  }
  /// Calls body(i) for what is left, `chunk` at a time.
  template <class Body>
  void work(int thread, std::int64_t chunk, const Body& body) {
    for (int turn = 0; turn < parts_; ++turn) {
      Part& part = part_[(thread + turn) % parts_];
      for (;;) {
        const std::int64_t first = part.next.fetch_add(chunk, std::memory_order_relaxed);
        if (first >= part.end) break;
        for (std::int64_t i = first; i < std::min(first + chunk, part.end); ++i) body(i);
      }
    }
  }

 private:
  struct alignas(64) Part {
    std::atomic<std::int64_t> next;
    std::int64_t end;
  };
  Part part_[most_parts];
  int parts_;
};

/// Calls body(i) for each i in [0, count) on the OpenMP pool, in no particular order; serial inside another
/// parallel_for, and if all bodies together do fewer than worth_threads multiply-adds (`work_each` says how
/// many one does). An exception from a body is rethrown here, when no body is running any more; bodies that
/// had not begun may be left out. Results must not depend on which thread runs which i: a body writes only
/// what belongs to its i.
template <class Body>
void parallel_for(std::int64_t count, std::int64_t work_each, const Body& body) {
  if (count <= 1 || count * work_each < worth_threads || omp_in_parallel() || threads() == 1) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::exception_ptr error;
  const std::int64_t chunk = std::clamp(worth_taking / std::max<std::int64_t>(work_each, 1), std::int64_t{1},
                                        std::max<std::int64_t>(count / (4 * threads()), 1));
  SharedRange range(count, std::min(threads(), SharedRange::most_parts));
#pragma omp parallel num_threads(threads())
  range.work(omp_get_thread_num(), chunk, [&](std::int64_t i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical(mla_parallel_error)
      if (!error) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

/// The same for bodies that are always worth a thread.
template <class Body>
void parallel_for(std::int64_t count, const Body& body) {
  parallel_for(count, worth_threads, body);
}

}  // namespace mla
