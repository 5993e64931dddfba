#include "mla/attention/forward.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/core/buffer.h"
#include "mla/core/parallel.h"

namespace mla {
namespace {

/// A thread's memory, reused from call to call.
struct Scratch {
  Buffer<float> q, out, max, sum;        // of a block of queries
  Buffer<float> k_by_column, v, scores;  // of a tile

  void lay_out(const AttentionShape& s, std::int64_t queries) {
    q.resize(queries * gradient_stride(s.d_qk));
    out.resize(queries * gradient_stride(s.d_v));
    max.resize(queries);
    sum.resize(queries);
    k_by_column.resize(s.d_qk * gradient_keys);
    v.resize(gradient_keys * gradient_stride(s.d_v));
    scores.resize(gradient_queries * gradient_keys);
  }
};

Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

/// One query head of one sequence.
class HeadForward {
 public:
  HeadForward(const AttentionShape& shape, const RowShape& rows, const AttentionForward& sequence,
              std::int64_t head, const LeafKernels& leaf)
      : shape_(shape),
        rows_(rows),
        s_(sequence),
        head_(head),
        kernels_(gradient_kernels(leaf.isa)),
        key_(sequence.rows + head / (shape.h_q / shape.h_kv) * rows.head_stride),
        qk_(gradient_stride(shape.d_qk)),
        v_(gradient_stride(shape.d_v)),
        tiles_{s_.queries.tokens, s_.length, shape.causal, qk_ + v_},
        scratch_(thread_scratch()) {
    scratch_.lay_out(shape, tiles_.block());
  }

  void run() const { tiles_.walk(*this); }

 private:
  friend HeadTiles;

  void load_queries(std::int64_t first, std::int64_t count) const {
    const QueryView& q = s_.queries;
    for (std::int64_t i = 0; i < count; ++i)
      std::copy_n(q.data + (first + i) * q.token_stride + head_ * q.head_stride, shape_.d_qk,
                  scratch_.q.data() + i * qk_);
    std::fill_n(scratch_.max.data(), count, std::numeric_limits<float>::lowest());
    std::fill_n(scratch_.sum.data(), count, 0.0f);
    std::fill_n(scratch_.out.data(), count * v_, 0.0f);
  }

  void load_keys(std::int64_t row, std::int64_t keys) const {
    const float* key = key_ + row * rows_.row_stride;
    kernels_.transpose(key, rows_.row_stride, keys, shape_.d_qk, scratch_.k_by_column.data(), gradient_keys);
    for (std::int64_t j = 0; j < keys; ++j) {
      float* const to = scratch_.v.data() + j * v_;
      std::copy_n(key + j * rows_.row_stride + rows_.value_offset, shape_.d_v, to);
      std::fill(to + shape_.d_v, to + v_, 0.0f);
    }
  }

  void store_keys(std::int64_t, std::int64_t) const {}  // nothing is made for them

  /// Queries of the block from `query` against the loaded keys.
  void add_tile(std::int64_t query, std::int64_t queries, std::int64_t keys, std::int64_t shift) const {
    kernels_.forward({shape_.d_qk, shape_.d_v, queries, keys, shift, shape_.scale,
                      scratch_.q.data() + query * qk_, scratch_.k_by_column.data(), scratch_.v.data(),
                      scratch_.scores.data(), scratch_.max.data() + query, scratch_.sum.data() + query,
                      scratch_.out.data() + query * v_});
  }

  void store_queries(std::int64_t first, std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t place = (first + i) * shape_.h_q + head_;
      const float sum = scratch_.sum[i], share = sum > 0.0f ? 1.0f / sum : sum;  // NaN stays
      const float* const from = scratch_.out.data() + i * v_;
      float* const to = s_.out + place * shape_.d_v;
      for (std::int64_t j = 0; j < shape_.d_v; ++j) to[j] = from[j] * share;
      s_.lse[place] = sum == 0.0f ? std::numeric_limits<float>::infinity() : scratch_.max[i] + std::log(sum);
    }
  }

  const AttentionShape& shape_;
  const RowShape& rows_;
  const AttentionForward& s_;
  std::int64_t head_;
  const GradientKernels& kernels_;
  const float* key_;  ///< row 0's, of the kv head
  std::int64_t qk_, v_;
  HeadTiles tiles_;
  Scratch& scratch_;
};

}  // namespace

void attend_forward(const AttentionShape& shape, const RowShape& rows,
                    std::span<const AttentionForward> sequences, const LeafKernels& leaf) {
  check_shape("attention forward", shape, rows);
  double work = 0;
  for (const AttentionForward& s : sequences) {
    check_sequence("attention forward", shape, rows, s.queries.tokens, s.length);
    work += static_cast<double>(s.queries.tokens) * static_cast<double>(s.length * (shape.d_qk + shape.d_v));
  }
  const std::int64_t count = std::ssize(sequences);
  const double each = std::min(work / static_cast<double>(std::max(count, std::int64_t{1})), 1e9);
  parallel_for(count * shape.h_q, static_cast<std::int64_t>(each), [&](std::int64_t i) {
    const AttentionForward& s = sequences[static_cast<std::size_t>(i / shape.h_q)];
    if (s.queries.tokens > 0) HeadForward(shape, rows, s, i % shape.h_q, leaf).run();
  });
}

}  // namespace mla
