#pragma once
#include <algorithm>
#include <cstdint>

#include "mla/attention/shape.h"
#include "mla/core/parts.h"
#include "mla/kernels/gradient.h"

namespace mla {

/// Where keys and values lie in rows of f32: [k | v] per kv head, or one latent whose first d_v values are
/// the value. Counted in floats. The kv heads of a row lie beside each other, or each in rows of its own.
struct RowShape {
  std::int64_t row_stride = 0;
  std::int64_t head_stride = 0;   ///< from one kv head to the next
  std::int64_t value_offset = 0;  ///< from a head's key to its value; 0: the value is a part of the key
};

/// How the queries of one head, and the rows that they may see, are cut into the tiles of gradient.h.
struct HeadTiles {
  std::int64_t tokens, length;
  bool causal;
  std::int64_t query_floats;  ///< that are kept for one query

  /// Queries for which a tile of keys is prepared once: even shares in whole tiles, that an L2 cache holds.
  std::int64_t block() const {
    constexpr std::int64_t block_floats = 1 << 18;
    const std::int64_t most = std::clamp(block_floats / query_floats, gradient_queries, std::int64_t{1024});
    const std::int64_t blocks = std::max(parts(tokens, most), std::int64_t{1});
    const std::int64_t share = parts(tokens, blocks);
    return round_up(share, gradient_queries);
  }
  /// Takes a head through its tiles: block of queries by block, tile of keys by tile. Head has
  /// load_queries(first, count) and store_queries, load_keys(row, keys) and store_keys, and add_tile(query of
  /// the block, queries, keys, shift).
  template <class Head>
  void walk(const Head& head) const {
    for (std::int64_t first = 0; first < tokens; first += block()) {
      const std::int64_t count = std::min(block(), tokens - first);
      head.load_queries(first, count);
      const std::int64_t end = seen(first + count - 1);
      for (std::int64_t row = 0; row < end; row += gradient_keys) {
        const std::int64_t keys = std::min(gradient_keys, end - row);
        head.load_keys(row, keys);
        for (std::int64_t query = 0; query < count; query += gradient_queries) {
          const std::int64_t queries = std::min(gradient_queries, count - query);
          const std::int64_t of_first = shift(first + query, row);
          if (queries - 1 + of_first >= 0) head.add_tile(query, queries, keys, of_first);
        }
        head.store_keys(row, keys);
      }
      head.store_queries(first, count);
    }
  }
  /// Rows that a token sees.
  std::int64_t seen(std::int64_t token) const {
    return causal ? std::clamp(length - tokens + token + 1, std::int64_t{0}, length) : length;
  }
  /// GradientTile::shift of queries from `token` on over rows from `row` on: below zero if the first sees
  /// none of them.
  std::int64_t shift(std::int64_t token, std::int64_t row) const {
    return causal ? std::min(length - tokens + token - row, gradient_keys) : gradient_keys;
  }
};

/// Throw Error, which begins with `where`, for a shape, rows or lengths that are not some.
void check_shape(const char* where, const AttentionShape& shape, const RowShape& rows);
void check_sequence(const char* where, const AttentionShape& shape, const RowShape& rows, std::int64_t tokens,
                    std::int64_t length);

}  // namespace mla
