#include "mla/kernels/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/kernels/widened_rows.h"

namespace mla {
namespace {

// The plain kernels, the oracle of the others: one query after another.

std::int64_t plain_packed_bytes(const QueryKinds& kinds, std::int64_t d_qk, std::int64_t) {
  return kinds.count() * d_qk * static_cast<std::int64_t>(sizeof(float));
}

void plain_pack(const float* const* rows, const QueryKinds& kinds, std::int64_t d_qk, std::int64_t,
                void* packed) {
  for (std::int64_t i = 0; i < kinds.count(); ++i)
    std::copy_n(rows[i], d_qk, static_cast<float*>(packed) + i * d_qk);
}

/// The state: max and sum of each query, then their accumulators.
AttendSums plain_sums(const AttendQueries& q, const void* state, std::int64_t i) {
  float* max = static_cast<float*>(const_cast<void*>(state));
  const std::int64_t count = q.kinds.count();
  return {max + i, max + count + i, max + 2 * count + i * q.d_v};
}

std::int64_t plain_state_bytes(const QueryKinds& kinds, std::int64_t d_v) {
  return kinds.count() * (d_v + 2) * static_cast<std::int64_t>(sizeof(float));
}

void plain_begin(const AttendQueries& q, void* state) {
  const AttendSums sums = plain_sums(q, state, 0);
  const std::int64_t count = q.kinds.count();
  std::fill_n(sums.max, count, -std::numeric_limits<float>::infinity());
  std::fill_n(sums.sum, count, 0.0f);
  std::fill_n(sums.acc, count * q.d_v, 0.0f);
}

void plain_fold(const AttendQueries& q, const void* first, const void* second, const AttendSums* into) {
  for (const void* state : {first, second}) {
    for (std::int64_t i = 0; state && i < q.kinds.count(); ++i)
      join_sums(plain_sums(q, state, i), q.d_v, into[i]);
  }
}

/// Scores of rows [first, first + count), then exp(score - new maximum) in their place; returns the factor by
/// which the sums so far shrink.
template <class T>
float plain_softmax(const AttendQueries& q, const float* query, const std::byte* const* row,
                    std::int64_t count, float* scores, float& max, float& sum) {
  const float before = max;
  for (std::int64_t r = 0; r < count; ++r) {
    const T* key = reinterpret_cast<const T*>(row[r]);
    scores[r] = 0.0f;
    for (std::int64_t d = 0; d < q.d_qk; ++d) scores[r] += query[d] * to_float(key[d]);
    scores[r] *= q.scale;
    max = scores[r] > max ? scores[r] : max;
  }
  const float shrink = std::exp(before - max);
  sum *= shrink;
  for (std::int64_t r = 0; r < count; ++r) {
    scores[r] = std::exp(scores[r] - max);
    sum += scores[r];
  }
  return shrink;
}

template <class T>
void plain_attend(const AttendQueries& q, const AttendRows& rows, void* state) {
  const std::byte *key[AttendRows::max_count], *value[AttendRows::max_count];
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::byte* row = rows.runs[i / AttendRows::run] + i % AttendRows::run * rows.row_stride;
    key[i] = row + rows.key_offset;
    value[i] = row + rows.value_offset;
  }
  float weights[AttendRows::max_count];
  for (std::int64_t i = 0; i < q.kinds.count(); ++i) {
    if (rows.visible[i] == 0) continue;
    const AttendSums sums = plain_sums(q, state, i);
    const float* query = static_cast<const float*>(q.packed) + i * q.d_qk;
    const float shrink = plain_softmax<T>(q, query, key, rows.visible[i], weights, *sums.max, *sums.sum);
    for (std::int64_t d = 0; d < q.d_v; ++d) sums.acc[d] *= shrink;
    for (std::int64_t r = 0; r < rows.visible[i]; ++r) {
      const T* values = reinterpret_cast<const T*>(value[r]);
      for (std::int64_t d = 0; d < q.d_v; ++d) sums.acc[d] += weights[r] * to_float(values[d]);
    }
  }
}

constexpr AttendKernel plain(void (*attend)(const AttendQueries&, const AttendRows&, void*)) {
  return {false,  plain_packed_bytes, plain_pack, plain_state_bytes, plain_begin,
          attend, plain_fold,         join_sums};
}

constexpr AttendKernel plain_f32 = plain(plain_attend<float>), plain_bf16 = plain(plain_attend<bf16>);

// Rows of other types for f32 kernels: a tile of them at a time is widened, as many as the kernel takes.

template <const AttendKernel& kernel, const LeafKernels& leaf, DType type>
void attend_widened(const AttendQueries& q, const AttendRows& rows, void* state) {
  const std::int64_t tile_rows = f32_tile_rows(leaf.isa == Isa::avx2 ? 8 : 16);
  thread_local WidenedRows tile;
  for (std::int64_t first = 0; first < rows.count; first += tile_rows)
    kernel.attend(q, tile.fill(type, q, rows, first, tile_rows, leaf), state);
}

/// The kernel of f32 rows, for rows of another type.
template <const AttendKernel& kernel, const LeafKernels& leaf, DType type>
const AttendKernel& widening() {
  static const AttendKernel widened = [] {
    AttendKernel k = kernel;
    k.attend = attend_widened<kernel, leaf, type>;
    return k;
  }();
  return widened;
}

template <const AttendKernel& kernel, const LeafKernels& leaf>
const AttendKernel& for_type(DType type) {
  switch (type) {
    case DType::bf16:
      return widening<kernel, leaf, DType::bf16>();
    case DType::f16:
      return widening<kernel, leaf, DType::f16>();
    case DType::f8_e4m3:
      return widening<kernel, leaf, DType::f8_e4m3>();
    case DType::i8:
      return widening<kernel, leaf, DType::i8>();
    default:
      return kernel;
  }
}

}  // namespace

void join_sums(const AttendSums& from, std::int64_t d_v, const AttendSums& into) {
  if (*from.sum == 0.0f) return;  // this query sees none of the rows
  const float top = std::max(*into.max, *from.max);
  const float old_weight = *into.sum == 0.0f ? 0.0f : std::exp(*into.max - top);
  const float new_weight = std::exp(*from.max - top);
  *into.max = top;
  *into.sum = *into.sum * old_weight + *from.sum * new_weight;
  for (std::int64_t j = 0; j < d_v; ++j) {
    const float old = old_weight == 0.0f ? 0.0f : into.acc[j] * old_weight;
    into.acc[j] = old + from.acc[j] * new_weight;
  }
}

const AttendKernel& f32_attend_kernel(DType type, const LeafKernels& leaf) {
  switch (leaf.isa) {
    case Isa::avx512_bf16:
    case Isa::avx512:
      return for_type<avx512_f32_attend, avx512_kernels>(type);
    case Isa::avx2:
      return for_type<avx2_f32_attend, avx2_kernels>(type);
    case Isa::scalar:
      break;
  }
  return type == DType::bf16 ? plain_bf16 : for_type<plain_f32, scalar_kernels>(type);
}

const AttendKernel& attend_kernel(DType type, const LeafKernels& leaf, std::int64_t d_v) {
  if (leaf.isa == Isa::avx512_bf16) {
    if (type == DType::bf16) return bf16_pair_attend;
    if (type == DType::f8_e4m3) return fp8_attend;
    if (type == DType::i8 && d_v <= int8_widest) return int8_attend;
  }
  return f32_attend_kernel(type, leaf);
}

}  // namespace mla
