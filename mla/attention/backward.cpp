#include "mla/attention/backward.h"

#include <algorithm>
#include <vector>

#include "mla/attention/head_tiles.h"
#include "mla/core/buffer.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"
#include "mla/kernels/gradient.h"

namespace mla {
namespace {

/// Query heads of one kv head that one unit of work takes.
constexpr std::int64_t unit_heads = 8;
/// A thread's memory, reused from call to call.
struct Scratch {
  Buffer<float> memory;
  float *q, *d_out, *d_q, *lse, *delta;              // of a block of queries
  float *k, *k_by_column, *v_by_column, *d_k, *d_v;  // of a tile of keys
  float *weights, *d_scores;

  void lay_out(const AttentionShape& s, std::int64_t queries) {
    const std::int64_t qk = gradient_stride(s.d_qk), v = gradient_stride(s.d_v), keys = gradient_keys;
    struct Part {
      float** at;
      std::int64_t floats;
    };
    const Part parts[] = {{&q, queries * qk},
                          {&d_out, queries * v},
                          {&d_q, queries * qk},
                          {&lse, queries},
                          {&delta, queries},
                          {&k, keys * qk},
                          {&k_by_column, s.d_qk * keys},
                          {&v_by_column, s.d_v * keys},
                          {&d_k, keys * qk},
                          {&d_v, keys * v},
                          {&weights, gradient_queries * keys},
                          {&d_scores, gradient_queries * keys}};
    std::int64_t total = 0;
    for (const Part& part : parts) total += part.floats;
    float* next = memory.resize(total);
    for (const Part& part : parts) {
      *part.at = next;
      next += part.floats;
    }
  }
};

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

/// Some query heads of one kv head of a sequence, one after another.
struct Unit {
  const AttentionGradient* sequence;
  std::int64_t kv_head, first_head, heads;
  float* d_key;  ///< row 0's key of the kv head; rows row_stride floats apart
  std::int64_t d_row_stride, d_value_offset;
};

/// The gradient of one query head.
class HeadGradient {
 public:
  HeadGradient(const AttentionShape& shape, const RowShape& rows, const Unit& unit, std::int64_t head,
               const LeafKernels& leaf)
      : shape_(shape),
        s_(*unit.sequence),
        unit_(unit),
        head_(head),
        leaf_(leaf),
        kernels_(gradient_kernels(leaf.isa)),
        key_(s_.rows + unit.kv_head * rows.head_stride),
        row_stride_(rows.row_stride),
        value_offset_(rows.value_offset),
        tiles_{s_.queries.tokens, s_.length, shape.causal,
               2 * gradient_stride(shape.d_qk) + gradient_stride(shape.d_v)},
        scratch_(thread_scratch()) {
    scratch_.lay_out(shape, tiles_.block());
  }

  void run() const { tiles_.walk(*this); }

 private:
  friend HeadTiles;

  std::int64_t qk_stride() const { return gradient_stride(shape_.d_qk); }
  std::int64_t v_stride() const { return gradient_stride(shape_.d_v); }
  bool is_latent() const { return value_offset_ == 0; }

  void load_queries(std::int64_t first, std::int64_t count) const {
    const QueryView& q = s_.queries;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t place = (first + i) * shape_.h_q + head_;
      const float* query = q.data + (first + i) * q.token_stride + head_ * q.head_stride;
      const float* d_out = s_.d_out + place * shape_.d_v;
      std::copy_n(query, shape_.d_qk, scratch_.q + i * qk_stride());
      float* padded = std::copy_n(d_out, shape_.d_v, scratch_.d_out + i * v_stride());
      std::fill(padded, scratch_.d_out + (i + 1) * v_stride(), 0.0f);
      scratch_.lse[i] = s_.lse[place];
      scratch_.delta[i] = leaf_.dot(d_out, s_.out + place * shape_.d_v, shape_.d_v);
    }
    std::fill_n(scratch_.d_q, count * qk_stride(), 0.0f);
  }

  void store_queries(std::int64_t first, std::int64_t count) const {
    const QueryView& q = s_.queries;
    for (std::int64_t i = 0; i < count; ++i) {
      std::copy_n(scratch_.d_q + i * qk_stride(), shape_.d_qk,
                  s_.d_queries + (first + i) * q.token_stride + head_ * q.head_stride);
    }
  }

  void load_keys(std::int64_t row, std::int64_t keys) const {
    const float* key = key_ + row * row_stride_;
    for (std::int64_t j = 0; j < keys; ++j)
      std::copy_n(key + j * row_stride_, shape_.d_qk, scratch_.k + j * qk_stride());
    kernels_.transpose(scratch_.k, qk_stride(), keys, shape_.d_qk, scratch_.k_by_column, gradient_keys);
    std::fill_n(scratch_.d_k, keys * qk_stride(), 0.0f);
    if (is_latent()) return;
    kernels_.transpose(key + value_offset_, row_stride_, keys, shape_.d_v, scratch_.v_by_column,
                       gradient_keys);
    std::fill_n(scratch_.d_v, keys * v_stride(), 0.0f);
  }

  /// Queries of the block from `query` against the loaded keys.
  void add_tile(std::int64_t query, std::int64_t queries, std::int64_t keys, std::int64_t shift) const {
    const std::int64_t qk = query * qk_stride(), v = query * v_stride();
    kernels_.tile({shape_.d_qk, shape_.d_v, queries, keys, shift, shape_.scale, scratch_.q + qk,
                   scratch_.d_out + v, scratch_.lse + query, scratch_.delta + query, scratch_.k,
                   scratch_.k_by_column, is_latent() ? scratch_.k_by_column : scratch_.v_by_column,
                   scratch_.weights, scratch_.d_scores, scratch_.d_q + qk, scratch_.d_k,
                   is_latent() ? scratch_.d_k : scratch_.d_v, is_latent() ? qk_stride() : v_stride()});
  }

  void store_keys(std::int64_t row, std::int64_t keys) const {
    for (std::int64_t j = 0; j < keys; ++j) {
      float* key = unit_.d_key + (row + j) * unit_.d_row_stride;
      leaf_.add_scaled(scratch_.d_k + j * qk_stride(), 1.0f, key, shape_.d_qk);
      if (!is_latent())
        leaf_.add_scaled(scratch_.d_v + j * v_stride(), 1.0f, key + unit_.d_value_offset, shape_.d_v);
    }
  }

  const AttentionShape& shape_;
  const AttentionGradient& s_;
  const Unit& unit_;
  std::int64_t head_;
  const LeafKernels& leaf_;
  const GradientKernels& kernels_;
  const float* key_;  ///< row 0's, of the kv head
  std::int64_t row_stride_, value_offset_;
  HeadTiles tiles_;
  Scratch& scratch_;
};

/// All units of a call. The first of a kv head adds to d_rows itself, the others to memory of their own.
class Units {
 public:
  Units(const AttentionShape& shape, const RowShape& rows, std::span<const AttentionGradient> sequences)
      : shape_(shape),
        rows_(rows),
        parts_(parts(shape.h_q / shape.h_kv, unit_heads)),
        part_width_(shape.d_qk + (rows.value_offset == 0 ? 0 : shape.d_v)) {
    std::int64_t lengths = 0;
    for (const AttentionGradient& s : sequences) lengths += s.length;
    sums_.resize((parts_ - 1) * shape.h_kv * lengths * part_width_);
    float* sum = sums_.data();
    for (const AttentionGradient& s : sequences) {
      if (s.queries.tokens == 0) continue;  // its pointers may be null
      for (std::int64_t kv_head = 0; kv_head < shape.h_kv; ++kv_head) sum = add_kv_head(s, kv_head, sum);
    }
  }

  void run(const LeafKernels& leaf) const {
    double work = 0;
    for (const Unit& u : units_) {
      work += static_cast<double>(u.heads * (3 * shape_.d_qk + 2 * shape_.d_v)) *
              static_cast<double>(u.sequence->queries.tokens) * static_cast<double>(u.sequence->length);
    }
    const auto count = static_cast<std::int64_t>(units_.size());
    const double each = std::min(work / static_cast<double>(std::max(count, std::int64_t{1})), 1e9);
    parallel_for(count, static_cast<std::int64_t>(each), [&](std::int64_t i) {
      const Unit& u = units_[i];
      for (std::int64_t h = 0; h < u.heads; ++h) HeadGradient(shape_, rows_, u, u.first_head + h, leaf).run();
    });
    if (parts_ > 1) add_sums(leaf);
  }

 private:
  float* add_kv_head(const AttentionGradient& s, std::int64_t kv_head, float* sum) {
    const std::int64_t group = shape_.h_q / shape_.h_kv;
    for (std::int64_t part = 0; part < parts_; ++part) {
      const std::int64_t first = part * unit_heads;
      Unit unit{&s,
                kv_head,
                kv_head * group + first,
                std::min(unit_heads, group - first),
                s.d_rows + kv_head * rows_.head_stride,
                rows_.row_stride,
                rows_.value_offset};
      if (part > 0) {
        unit.d_key = sum;
        unit.d_row_stride = part_width_;
        unit.d_value_offset = rows_.value_offset == 0 ? 0 : shape_.d_qk;
        sum += s.length * part_width_;
      }
      units_.push_back(unit);
    }
    return sum;
  }

  void add_sums(const LeafKernels& leaf) const {
    const auto kv_heads = static_cast<std::int64_t>(units_.size()) / parts_;
    parallel_for(kv_heads, [&](std::int64_t i) {
      const Unit& to = units_[i * parts_];
      for (std::int64_t part = 1; part < parts_; ++part) {
        const Unit& from = units_[i * parts_ + part];
        for (std::int64_t row = 0; row < to.sequence->length; ++row) {
          const float* sum = from.d_key + row * from.d_row_stride;
          float* key = to.d_key + row * to.d_row_stride;
          leaf.add_scaled(sum, 1.0f, key, shape_.d_qk);
          if (rows_.value_offset != 0)
            leaf.add_scaled(sum + from.d_value_offset, 1.0f, key + to.d_value_offset, shape_.d_v);
        }
      }
    });
  }

  const AttentionShape& shape_;
  const RowShape& rows_;
  std::int64_t parts_, part_width_;  ///< of a kv head's query heads; floats of a row of a part
  Buffer<float> sums_;
  std::vector<Unit> units_;
};

}  // namespace

void attend_backward(const AttentionShape& shape, const RowShape& rows,
                     std::span<const AttentionGradient> sequences, const LeafKernels& leaf) {
  check_shape("attention backward", shape, rows);
  for (const AttentionGradient& s : sequences)
    check_sequence("attention backward", shape, rows, s.queries.tokens, s.length);
  Units(shape, rows, sequences).run(leaf);
}

}  // namespace mla
