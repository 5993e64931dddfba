#include "mla/attention/selected.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "mla/attention/attention.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"

namespace mla {
namespace {

/// Bytes of rows that are gathered at a time: few enough for a large cache, many enough for all threads.
constexpr std::int64_t gathered_bytes = std::int64_t{32} << 20;

void check(const AttentionShape& shape, const Selection& s, DType type) {
  require(s.count == 0 || (s.count > 0 && s.table), "sparse attention: found {} indices{}", s.count,
          s.table ? "" : " and no table");
  if (!s.table) return;
  require(s.table->width == shape.d_qk, "sparse attention: found rows of {} values, expected d_qk {}",
          s.table->width, shape.d_qk);
  require(s.table->value_type() == type,
          "sparse attention: found tables of {} and of {} values, expected one", name_of(type),
          name_of(s.table->value_type()));
}

/// Gathers the rows of some queries and attends to them.
class Gathering {
 public:
  Gathering(const AttentionShape& shape, DType type, const LeafKernels& leaf)
      : shape_(shape), layout_(RowLayout::latent(shape.d_v, shape.d_qk - shape.d_v, type)), leaf_(leaf) {}

  std::int64_t row_bytes() const { return layout_.bytes(); }

  /// REQUIRES queries that select at most `most_rows` each.
  void run(std::span<const SelectedQuery> queries, std::int64_t most_rows) {
    const std::int64_t count = std::ssize(queries), stride = most_rows * row_bytes();
    std::byte* const memory = memory_of(count * stride);
    starts_.resize(static_cast<std::size_t>(count));
    sequences_.resize(static_cast<std::size_t>(count));
    parallel_for(count, most_rows * shape_.d_qk, [&](std::int64_t i) {
      const SelectedQuery& q = queries[i];
      std::byte* const start = memory + i * stride;
      std::byte* const end = gather(q.more_rows, gather(q.rows, start));
      const std::int64_t length = (end - start) / row_bytes();
      starts_[i] = start;
      sequences_[i] = {
          {q.heads, 1, 0, q.head_stride}, dense_view(layout_, starts_[i], length), q.out, q.lse, q.largest};
    });
    attend(shape_, sequences_, leaf_);
  }

 private:
  /// The calling thread's, kept from call to call: the system takes long to clear so much.
  static std::byte* memory_of(std::int64_t bytes) {
    thread_local Buffer<std::byte> memory;
    return memory.resize(bytes);
  }

  std::byte* gather(const Selection& s, std::byte* out) const {
    const std::int64_t rows = s.table ? s.table->rows() : 0;
    for (std::int64_t i = 0; i < s.count; ++i) {
      if (s.indices[i] < 0 || s.indices[i] >= rows) continue;
      s.table->read(s.indices[i], out, leaf_);
      out += row_bytes();
    }
    return out;
  }

  const AttentionShape& shape_;
  RowLayout layout_;
  const LeafKernels& leaf_;
  std::vector<const std::byte*> starts_;
  std::vector<AttentionSequence> sequences_;
};

}  // namespace

void attend_selected(const AttentionShape& shape, std::span<const SelectedQuery> queries,
                     const LeafKernels& leaf) {
  require(shape.h_kv == 1 && shape.h_q > 0 && shape.d_v > 0 && shape.d_v <= shape.d_qk && shape.scale > 0 &&
              !shape.causal,
          "sparse attention: found h_q {}, h_kv {}, d_qk {}, d_v {}, scale {}{}, expected one kv head whose "
          "value is a part "
          "of its key, a positive scale, and no causal mask",
          shape.h_q, shape.h_kv, shape.d_qk, shape.d_v, shape.scale, shape.causal ? ", causal" : "");
  if (queries.empty()) return;
  const Selection& first = queries[0].rows.table ? queries[0].rows : queries[0].more_rows;
  const DType type = first.table ? first.table->value_type() : DType::f32;
  std::int64_t most_rows = 0;
  for (const SelectedQuery& q : queries) {
    check(shape, q.rows, type);
    check(shape, q.more_rows, type);
    most_rows = std::max(most_rows, q.rows.count + q.more_rows.count);
  }
  Gathering gathering(shape, type, leaf);
  const std::int64_t at_once = std::max(
      gathered_bytes / std::max(most_rows * gathering.row_bytes(), std::int64_t{1}), std::int64_t{1});
  for (std::int64_t i = 0; i < std::ssize(queries); i += at_once)
    gathering.run(queries.subspan(i, std::min(at_once, std::ssize(queries) - i)), most_rows);
}

void apply_sinks(const float* sinks, const float* lse, std::int64_t tokens, std::int64_t h_q,
                 std::int64_t d_v, float* out) {
  parallel_for(tokens * h_q, d_v, [&](std::int64_t i) {
    const float sink = sinks[i % h_q];
    // 1 / (1 + exp(sink - lse)), where inf - inf must not become a NaN.
    const float factor =
        sink == std::numeric_limits<float>::infinity() ? 0.0f : 1.0f / (1.0f + std::exp(sink - lse[i]));
    for (std::int64_t v = 0; v < d_v; ++v) out[i * d_v + v] *= factor;
  });
}

}  // namespace mla
