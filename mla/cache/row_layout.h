#pragma once
#include <cstddef>
#include <cstdint>

#include "mla/core/dtype.h"
#include "mla/kernels/latent_row.h"

namespace mla {

/// The bytes that one token keeps in one layer (docs/cache_format.md).
///
/// MLA keeps one shared row `[c_kv | k_rope]`; the other attentions keep `[k | v]` for each kv head, one head
/// after another. Chapter 3.4.2: for MLA this row is the only thing stored. Latent rows may be quantised, to
/// fp8 or int8 with their scales and a rotated key in bf16.
class RowLayout {
 public:
  /// `[c_kv (d_c) | k_rope (d_r)]`. The key is the whole row, the value its first d_c values. d_r may be 0.
  static RowLayout latent(std::int64_t d_c, std::int64_t d_r, DType type);
  /// `[k (d_qk) | v (d_v)]` per kv head.
  static RowLayout heads(std::int64_t h_kv, std::int64_t d_qk, std::int64_t d_v, DType type);

  DType type() const { return type_; }
  std::int64_t values() const { return values_; }  ///< numbers in a row
  std::int64_t bytes() const { return bytes_; }
  std::int64_t key_offset() const { return 0; }                ///< bytes from a head's start to its key
  std::int64_t value_offset() const { return value_offset_; }  ///< bytes from a head's start to its value
  std::int64_t head_bytes() const { return head_bytes_; }      ///< bytes from one kv head to the next

  /// Encodes values [values()] as a row of bytes(), rounding to nearest; encode_latent says what becomes of
  /// values that are no numbers.
  void write(const float* values, std::byte* row) const;
  /// Decodes the first `count` values of a row.
  void read(const std::byte* row, std::int64_t count, float* values) const;

 private:
  RowLayout(DType type, std::int64_t values, std::int64_t value_offset, std::int64_t head_bytes);
  RowLayout(DType type, const LatentRow& quantised);

  DType type_;
  std::int64_t values_;
  std::int64_t bytes_;
  std::int64_t value_offset_;
  std::int64_t head_bytes_;
  LatentRow quantised_{};  // of fp8 and int8 rows
};

}  // namespace mla
