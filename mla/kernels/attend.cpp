#include "mla/kernels/attend.h"

#include <algorithm>
#include <limits>

namespace mla {
namespace {

std::int64_t plain_packed_bytes(std::int64_t num_queries, std::int64_t d_qk) {
  return num_queries * d_qk * static_cast<std::int64_t>(sizeof(float));
}

void plain_pack(const float* const* queries, std::int64_t num_queries, std::int64_t, std::int64_t d_qk,
                void* packed) {
  for (std::int64_t i = 0; i < num_queries; ++i)
    std::copy_n(queries[i], d_qk, static_cast<float*>(packed) + i * d_qk);
}

/// One query after another over tiles of rows.
void plain_attend(const AttendBlock& b, void (*attend_tile)(const AttendTile&)) {
  for (std::int64_t i = 0; i < b.num_queries; ++i) {
    b.max[i] = -std::numeric_limits<float>::infinity();
    b.sum[i] = 0.0f;
    std::fill_n(b.acc + i * b.d_v, b.d_v, 0.0f);
    const float* query = static_cast<const float*>(b.queries) + i * b.d_qk;
    AttendTile tile{
        query,          b.d_qk,    1,         b.d_qk,           b.d_v, b.scale, b.rows, 0, b.key_offset,
        b.value_offset, b.max + i, b.sum + i, b.acc + i * b.d_v};
    for (std::int64_t row = 0; row < b.visible[i]; row += tile.num_rows) {
      tile.rows = b.rows + row;
      tile.num_rows = std::min(AttendTile::max_rows, b.visible[i] - row);
      attend_tile(tile);
    }
  }
}

template <Isa isa>
void plain_attend_f32(const AttendBlock& block) {
  plain_attend(block, leaf_kernels(isa).attend_f32);
}

template <Isa isa>
void plain_attend_bf16(const AttendBlock& block) {
  plain_attend(block, leaf_kernels(isa).attend_bf16);
}

template <Isa isa>
const AttendKernel& plain_kernel(DType type) {
  static constexpr AttendKernel f32{false, plain_packed_bytes, plain_pack, plain_attend_f32<isa>};
  static constexpr AttendKernel bf16{false, plain_packed_bytes, plain_pack, plain_attend_bf16<isa>};
  return type == DType::bf16 ? bf16 : f32;
}

}  // namespace

const AttendKernel& attend_kernel(DType type, const LeafKernels& leaf) {
  switch (leaf.isa) {
    case Isa::avx512:
      if (type == DType::bf16 && supports_bf16_products()) return bf16_pair_attend;
      return plain_kernel<Isa::avx512>(type);
    case Isa::avx2:
      return plain_kernel<Isa::avx2>(type);
    case Isa::scalar:
      break;
  }
  return plain_kernel<Isa::scalar>(type);
}

}  // namespace mla
