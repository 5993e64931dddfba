#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"

namespace mla {

// Causal attention of many query tokens of one head in products of bf16 pairs, for CPUs with AVX512_BF16 and
// AVX512_VBMI. Keys and values are laid out for the products a tile of rows at a time; panels of 32 queries
// pass over each tile. Queries, keys, values and the softmax's weights are bf16, sums are f32.
//
// A query's result has the same bits whichever lane it lies in and whatever is beside it: tiles begin at
// multiples of prefill_tile rows of the sequence, its softmax follows its own scores alone, and rows that it
// does not see add exactly nothing.

/// Whether the instruction set in use has these kernels.
bool has_prefill();

/// Rows of a tile: a multiple of prefill_block.
constexpr std::int64_t prefill_tile = 264;
/// Rows that are worked on at a time.
constexpr std::int64_t prefill_block = 12;
/// Query tokens of a panel: two vectors.
constexpr std::int64_t prefill_queries = 32;
/// Features that packed weights and values come in.
constexpr std::int64_t prefill_chunk = 32;

constexpr std::int64_t prefill_chunks(std::int64_t features) {
  return (features + prefill_chunk - 1) / prefill_chunk;
}

/// Keys and values of one head for up to prefill_tile rows.
struct PrefillTile {
  std::int64_t d_qk;
  std::int64_t d_v;
  bf16* keys;    ///< [prefill_tile][key_stride]; an odd d_qk is followed by a zero
  bf16* values;  ///< [prefill_chunks(d_v)][prefill_tile / 2][32 features][2 rows]; zeros behind d_v

  static std::int64_t key_stride(std::int64_t d_qk) { return (d_qk + 1) / 2 * 2; }
  static std::int64_t key_values(std::int64_t d_qk) { return prefill_tile * key_stride(d_qk); }
  static std::int64_t value_values(std::int64_t d_v) {
    return prefill_chunks(d_v) * prefill_tile * prefill_chunk;
  }
};

/// Cached bf16 rows of a tile in runs of four that lie `row_stride` bytes apart (see KvView::list_runs); rows
/// of the last run that do not exist can be read and are zero.
struct PrefillRows {
  const std::byte* const* runs;  ///< [ceil(count / 4)]
  std::int64_t row_stride;       ///< bytes
  std::int64_t count;            ///< 1 to prefill_tile
};

/// W_UK and W_UV of one head, packed.
struct PrefillWeights {
  std::int64_t d_c;
  std::int64_t d_n;
  std::int64_t d_v;
  const bf16* packed;  ///< [chunks()][chunk_values(d_c)]: of W_UK, then of W_UV

  std::int64_t chunks() const { return prefill_chunks(d_n) + prefill_chunks(d_v); }
  static std::int64_t chunk_values(std::int64_t d_c) { return (d_c + 1) / 2 * 2 * prefill_chunk; }
};

/// Packs a chunk: weights[f][0..d_c), f < outputs <= prefill_chunk, `stride` values apart.
void pack_prefill_weights(const bf16* weights, std::int64_t stride, std::int64_t outputs, std::int64_t d_c,
                          bf16* packed);

/// Keys [W_UK c | k_rope] and values W_UV c of rows [first, first + prefill_block), as far as they exist, of
/// rows [c (d_c) | k_rope]. `first` is a multiple of prefill_block.
void decompress_block(const PrefillRows& rows, std::int64_t first, const PrefillWeights& weights,
                      const PrefillTile& tile);
/// Keys and values of those rows that lie in them, `key_offset` and `value_offset` bytes from their start.
void copy_block(const PrefillRows& rows, std::int64_t first, std::int64_t key_offset,
                std::int64_t value_offset, const PrefillTile& tile);

/// Up to prefill_queries queries of consecutive tokens.
struct PrefillPanel {
  bf16* queries;           ///< packed by pack_prefill_queries, 64-byte aligned
  std::int64_t count;      ///< 1 to prefill_queries
  std::int64_t first_row;  ///< the last row that the first query sees; the next query sees one more, ...
  float* state;            ///< [state_values] running sums, 64-byte aligned
  const void* ahead;       ///< memory that this thread works on next, to be fetched meanwhile
  std::int64_t ahead_bytes;

  static std::int64_t query_values(std::int64_t d_qk) {
    return PrefillTile::key_stride(d_qk) * prefill_queries;
  }
  static std::int64_t state_values(std::int64_t d_v) {
    return prefill_queries * (3 + prefill_chunks(d_v) * prefill_chunk);
  }
};

/// Scores are counted in 128ths of powers of two: 128 log2(e).
constexpr float prefill_unit = 184.6649652f;
/// Packs queries[i][0..d_qk) * scale * prefill_unit, i < count, `stride` values apart, rounded to bf16; zeros
/// fill up the panel. `scale` multiplies each score before the softmax.
void pack_prefill_queries(const float* queries, std::int64_t stride, std::int64_t count, std::int64_t d_qk,
                          float scale, bf16* packed);
/// Sets the panel's sums to those of no rows.
void begin_prefill(const PrefillPanel& panel);
/// Adds the tile's rows, which are rows [first_row, first_row + count) of the sequence. Tiles come in order,
/// from row 0 on.
void attend_prefill(const PrefillPanel& panel, const PrefillTile& tile, std::int64_t first_row,
                    std::int64_t count);
/// out[i][0..d_v) = result of query i, `stride` values apart.
void end_prefill(const PrefillPanel& panel, std::int64_t d_v, float* out, std::int64_t stride);

}  // namespace mla
