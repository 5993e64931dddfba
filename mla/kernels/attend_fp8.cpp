// Attention over fp8 latents by the kernel of bf16 pairs: tiles of rows are expanded to bf16, which is exact,
// into memory that stays in L2. That kernel expands some rows between the products of others, and while it
// works on a tile, it fetches the next one's codes.
#include <algorithm>

#include "mla/core/buffer.h"
#include "mla/core/parts.h"
#include "mla/kernels/attend.h"
#include "mla/kernels/fp8_rows.h"

namespace mla {
namespace {

constexpr std::int64_t tile_rows = 256;
constexpr std::int64_t run = AttendRows::run;

std::int64_t packed_bytes(const QueryKinds& kinds, std::int64_t d_qk, std::int64_t d_v) {
  return bf16_pair_attend.packed_bytes(kinds, d_qk, d_v);
}

void pack(const float* const* rows, const QueryKinds& kinds, std::int64_t d_qk, std::int64_t d_v,
          void* packed) {
  bf16_pair_attend.pack(rows, kinds, d_qk, d_v, packed);
}

std::int64_t state_bytes(const QueryKinds& kinds, std::int64_t d_v) {
  return bf16_pair_attend.state_bytes(kinds, d_v);
}

void begin(const AttendQueries& q, void* state) {
  bf16_pair_attend.begin(q, state);
}

void fold(const AttendQueries& q, const void* first, const void* second, const AttendSums* into) {
  bf16_pair_attend.fold(q, first, second, into);
}

void join(const AttendSums& from, std::int64_t d_v, const AttendSums& into) {
  bf16_pair_attend.join(from, d_v, into);
}

/// The lines of the rows from `first` on, a tile's if there are so many. Returns how many lines there are.
std::int64_t list_lines(const AttendRows& rows, std::int64_t first, Lines (&lines)[tile_rows / run + 1]) {
  const std::int64_t count = std::clamp<std::int64_t>(rows.count + rows.ahead - first, 0, tile_rows) / run;
  const std::int64_t lines_of_run = (run * rows.row_stride + 63) / 64;
  for (std::int64_t i = 0; i < count; ++i) lines[i] = {rows.runs[first / run + i], lines_of_run};
  lines[count] = {rows.runs[0], std::int64_t{1} << 62};
  return count * lines_of_run;
}

/// Rows [first, first + count) of the call, expanded.
void attend_tile(const AttendQueries& q, const AttendRows& rows, std::int64_t first, std::int64_t count,
                 void* state) {
  std::int32_t visible[AttendQueries::max_count], most = 0;
  for (std::int64_t i = 0; i < q.kinds.count(); ++i) {
    const std::int64_t seen = std::clamp<std::int64_t>(rows.visible[i] - first, 0, count);
    visible[i] = static_cast<std::int32_t>(seen);
    most = std::max(most, visible[i]);
  }
  if (most == 0) return;
  const std::int64_t stride = (parts(q.d_qk, 32) | 1) * 32;  // an odd number of lines, to use all sets of L1
  const std::int64_t num_runs = (count + run - 1) / run;
  thread_local Buffer<bf16> memory;
  bf16* expanded = memory.resize_scratch(tile_rows * stride);
  const Fp8Rows codes{latent_row(DType::f8_e4m3, q.d_v, q.d_qk - q.d_v), rows.runs + first / run,
                      rows.row_stride, num_runs * run};
  const std::byte* runs[tile_rows / run];
  for (std::int64_t i = 0; i < num_runs; ++i)
    runs[i] = reinterpret_cast<const std::byte*>(expanded + i * run * stride);
  Lines lines[tile_rows / run + 1];
  const std::int64_t num_lines = list_lines(rows, first + tile_rows, lines);
  bf16_pair_attend.attend(
      q,
      {runs, stride * size_of(DType::bf16), count, 0, visible, 0, 0, lines, num_lines, &codes, rows.largest},
      state);
}

void attend(const AttendQueries& q, const AttendRows& rows, void* state) {
  for (std::int64_t first = 0; first < rows.count; first += tile_rows)
    attend_tile(q, rows, first, std::min(tile_rows, rows.count - first), state);
}

}  // namespace

const AttendKernel fp8_attend{true, packed_bytes, pack, state_bytes, begin, attend, fold, join};

}  // namespace mla
