#include "mla/kernels/widened_rows.h"

#include <algorithm>

#include "mla/core/parts.h"
#include "mla/kernels/latent_row.h"

namespace mla {
namespace {

/// How many rows before they are made f32 they are fetched: they may lie far apart, one head's of a row for
/// all, which the CPU does not foresee.
constexpr std::int64_t rows_ahead = 8;

/// Which of a row's bytes an f32 row is made of, and where key and value are in that.
struct Widening {
  std::int64_t begin, bytes;             // of the row
  std::int64_t width, key_at, value_at;  // values
  LatentRow latent;                      // of quantised rows

  Widening(DType type, const AttendQueries& q, const AttendRows& rows)
      : begin(std::min(rows.key_offset, rows.value_offset)), width(q.d_qk), key_at(0), value_at(0), latent{} {
    if (type == DType::f8_e4m3 || type == DType::i8) {
      latent = latent_row(type, q.d_v, q.d_qk - q.d_v);
      bytes = latent.bytes;
      return;
    }
    const std::int64_t size = size_of(type);
    bytes = std::max(rows.key_offset + q.d_qk * size, rows.value_offset + q.d_v * size) - begin;
    width = bytes / size;
    key_at = (rows.key_offset - begin) / size;
    value_at = (rows.value_offset - begin) / size;
  }
};

void widen(DType type, const Widening& at, const std::byte* from, float* to, const LeafKernels& leaf) {
  if (type == DType::bf16) return leaf.bf16_to_f32(reinterpret_cast<const bf16*>(from), to, at.width);
  if (type == DType::f16) return leaf.f16_to_f32(reinterpret_cast<const std::uint16_t*>(from), to, at.width);
  decode_latent(type, at.latent, from, at.width, to, leaf);
}

void fetch(const std::byte* row, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
}

}  // namespace

AttendRows WidenedRows::fill(DType type, const AttendQueries& q, const AttendRows& rows, std::int64_t first,
                             std::int64_t count, const LeafKernels& leaf) {
  constexpr std::int64_t wide = sizeof(float), run = AttendRows::run;
  const Widening at(type, q, rows);
  const std::int64_t stride =
      (parts(at.width, 16) | 1) * 16;  // an odd number of lines, to use all sets of L1
  count = std::min(count, rows.count - first);
  const std::int64_t end = rows.count + rows.ahead;
  float* to = memory_.resize_scratch(most_rows * stride);
  for (std::int64_t r = 0; r < count; r += run) {
    runs_[r / run] = reinterpret_cast<const std::byte*>(to);
    const std::int64_t next = first + r + rows_ahead;
    for (std::int64_t j = 0; j < run; ++j, to += stride) {
      if (next + j < end) fetch(rows.runs[next / run] + j * rows.row_stride + at.begin, at.bytes);
      if (r + j < count)
        widen(type, at, rows.runs[(first + r) / run] + j * rows.row_stride + at.begin, to, leaf);
      else
        std::fill_n(to, at.width, 0.0f);  // no row
    }
  }
  for (std::int64_t i = 0; i < q.kinds.count(); ++i)
    visible_[i] = static_cast<std::int32_t>(std::clamp(rows.visible[i] - first, std::int64_t{0}, count));
  return {runs_, stride * wide, count, 0, visible_, at.key_at * wide, at.value_at * wide};
}

}  // namespace mla
