#include "mla/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "mla/core/error.h"
#include "mla/core/parallel.h"

namespace mla {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
/// Rows behind a split that the next one begins with, for the kernel to fetch.
constexpr std::int64_t rows_ahead = 256;
/// Query rows whose sums one thread merges.
constexpr std::int64_t merge_block = 16;

void check(const AttentionShape& s) {
  require(
      s.h_q >= 1 && s.h_kv >= 1 && s.d_qk >= 1 && s.d_v >= 1 && s.h_q % s.h_kv == 0,
      "attention: found h_q {}, h_kv {}, d_qk {}, d_v {}, expected positive sizes and h_q a multiple of h_kv",
      s.h_q, s.h_kv, s.d_qk, s.d_v);
}

}  // namespace

struct OnlineAttention::Item {
  std::int64_t index, kv_head;
  std::int64_t first, count;  // query rows of this kv head, in the order of place()
  std::int64_t
      num_fours;  // of them, the last ones, that are left over when eights are made of a token's heads
};

struct OnlineAttention::Partial {
  float* acc;  // [count][d_v]
  float* max;  // [count]
  float* sum;  // [count]

  static std::int64_t size(std::int64_t count, std::int64_t d_v) { return count * (d_v + 2); }
};

OnlineAttention::OnlineAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length,
                                 float* out, const LeafKernels& leaf)
    : shape_(shape), queries_(queries), kv_length_(kv_length), leaf_(leaf), acc_(out) {
  check(shape);
  group_ = shape.h_q / shape.h_kv;
  left_over_ = group_ > 8 && group_ % 8 <= 4 ? group_ % 8 : 0;
  blocks_ = (queries.tokens * group_ + AttendBlock::max_queries - 1) / AttendBlock::max_queries;
  items_ = blocks_ * shape.h_kv;
  most_queries_ = std::min(AttendBlock::max_queries, queries.tokens * group_);
  const std::int64_t rows = queries.tokens * shape.h_q;
  std::fill_n(max_.resize(rows), rows, -infinity);
  sum_.resize(rows);
  std::fill_n(acc_, rows * shape.d_v, 0.0f);
}

OnlineAttention::Item OnlineAttention::item(std::int64_t index) const {
  const std::int64_t first = index % blocks_ * AttendBlock::max_queries;
  const std::int64_t count = std::min(AttendBlock::max_queries, queries_.tokens * group_ - first);
  const std::int64_t eights = queries_.tokens * (group_ - left_over_);
  return {index, index / blocks_, first, count, std::clamp(first + count - eights, std::int64_t{0}, count)};
}

/// The token and head of a kv head's i-th query row. The rows go token by token, but the heads that 8 does
/// not divide come behind all others: so it depends on the head alone in which kind of group it is summed.
OnlineAttention::Place OnlineAttention::place(std::int64_t kv_head, std::int64_t i) const {
  const std::int64_t whole = group_ - left_over_;
  const std::int64_t first_head = kv_head * group_;
  if (i < queries_.tokens * whole) return {i / whole, first_head + i % whole};
  i -= queries_.tokens * whole;
  return {i / left_over_, first_head + whole + i % left_over_};
}

OnlineAttention::Partial OnlineAttention::partial_in(float* memory) const {
  float* const max = memory + most_queries_ * shape_.d_v;
  return {memory, max, max + most_queries_};
}

/// Where the sums of an item's query row i are kept: token * h_q + head.
std::int64_t OnlineAttention::state_row(const Item& item, std::int64_t i) const {
  const Place at = place(item.kv_head, item.first + i);
  return at.token * shape_.h_q + at.head;
}

std::int64_t OnlineAttention::visible_rows(std::int64_t token) const {
  if (!shape_.causal) return kv_length_;
  return std::max(std::int64_t{0}, kv_length_ - queries_.tokens + token + 1);
}

void OnlineAttention::pack_queries(const AttendKernel& kernel) {
  kernel_ = &kernel;
  packed_stride_ = kernel.packed_bytes(most_queries_, shape_.d_qk);
  packed_.resize(items_ * packed_stride_);
  parallel_for(items_, most_queries_ * shape_.d_qk, [&](std::int64_t index) {
    const Item work = item(index);
    const float* rows[AttendBlock::max_queries];
    for (std::int64_t i = 0; i < work.count; ++i) {
      const Place at = place(work.kv_head, work.first + i);
      rows[i] = queries_.data + at.token * queries_.token_stride + at.head * queries_.head_stride;
    }
    kernel.pack(rows, work.count, work.num_fours, shape_.d_qk, packed_.data() + index * packed_stride_);
  });
}

void OnlineAttention::attend_split(const Item& item, const KvView& part, std::int64_t first_row,
                                   std::int64_t split, std::int64_t end_row, Partial out) const {
  const std::int64_t begin = split * split_rows;
  std::int32_t visible[AttendBlock::max_queries] = {};
  for (std::int64_t i = 0; i < item.count; ++i) {
    const std::int64_t seen = visible_rows(place(item.kv_head, item.first + i).token) - first_row - begin;
    visible[i] = static_cast<std::int32_t>(
        std::clamp(seen, std::int64_t{0}, std::min(split_rows, part.length - begin)));
  }
  const std::int64_t count = *std::max_element(visible, visible + item.count);
  if (count == 0) {
    std::fill_n(out.sum, item.count, 0.0f);
    return;
  }
  const std::byte* rows[split_rows + rows_ahead];
  const std::int64_t listed = std::min(std::min(part.length, end_row) - begin, split_rows + rows_ahead);
  part.list_rows(begin, listed, item.kv_head * part.head_bytes, rows);
  kernel_->attend({packed_.data() + item.index * packed_stride_, item.count, item.num_fours, shape_.d_qk,
                   shape_.d_v, shape_.scale, rows, count, listed - count, visible, part.key_offset,
                   part.value_offset, out.max, out.sum, out.acc});
}

void OnlineAttention::merge(const Item& item, std::int64_t i, const Partial& partial) {
  if (partial.sum[i] == 0.0f) return;  // this query sees no row of the split
  const auto power = [&](float x) { return kernel_->base_two ? std::exp2(x) : std::exp(x); };
  const std::int64_t row = state_row(item, i);
  const float top = std::max(max_[row], partial.max[i]);
  const float old_weight = power(max_[row] - top);
  const float new_weight = power(partial.max[i] - top);
  max_[row] = top;
  sum_[row] = sum_[row] * old_weight + partial.sum[i] * new_weight;
  float* acc = acc_ + row * shape_.d_v;
  const float* added = partial.acc + i * shape_.d_v;
  for (std::int64_t j = 0; j < shape_.d_v; ++j) acc[j] = acc[j] * old_weight + added[j] * new_weight;
}

void OnlineAttention::check_part(const KvView& part, std::int64_t first_row) const {
  require(first_row % split_rows == 0, "attention: part begins at row {}, expected a multiple of {}",
          first_row, split_rows);
  require(part.length % split_rows == 0 || first_row + part.length == kv_length_,
          "attention: part of {} rows from row {} neither ends the {} rows nor at a multiple of {}",
          part.length, first_row, kv_length_, split_rows);
  require(part.type == DType::f32 || part.type == DType::bf16, "attention over rows of {}: not supported",
          name_of(part.type));
}

/// Enough queries: each thread walks all splits of its own.
void OnlineAttention::add_by_items(const KvView& part, std::int64_t first_row, std::int64_t splits) {
  const std::int64_t work =
      std::min(AttendBlock::max_queries, queries_.tokens * group_) * (shape_.d_qk + shape_.d_v);
  parallel_for(items_, part.length * work, [&](std::int64_t index) {
    thread_local Buffer<float> memory;
    const Partial partial = partial_in(memory.resize(Partial::size(most_queries_, shape_.d_v)));
    const Item mine = item(index);
    for (std::int64_t split = 0; split < splits; ++split) {
      attend_split(mine, part, first_row, split, part.length, partial);
      for (std::int64_t i = 0; i < mine.count; ++i) merge(mine, i, partial);
    }
  });
}

/// Few queries over many rows: splits run side by side, a bounded number at a time, and are merged in the
/// same order.
void OnlineAttention::add_by_splits(const KvView& part, std::int64_t first_row, std::int64_t splits) {
  const std::int64_t size = Partial::size(most_queries_, shape_.d_v);
  const std::int64_t wave = std::min(splits, 8 * static_cast<std::int64_t>(threads()));
  thread_local Buffer<float> memory;
  float* partials = memory.resize(items_ * wave * size);
  for (std::int64_t begin = 0; begin < splits; begin += wave) {
    const std::int64_t count = std::min(wave, splits - begin);
    // Each thread takes neighbouring splits: what it fetches ahead is then its own.
    const std::int64_t run = (count + threads() - 1) / threads(), runs = (count + run - 1) / run;
    parallel_for(items_ * runs, [&](std::int64_t r) {
      const Item work = item(r / runs);
      const std::int64_t first = r % runs * run, last = std::min(first + run, count);
      for (std::int64_t s = first; s < last; ++s) {
        attend_split(work, part, first_row, begin + s, (begin + last) * split_rows,
                     partial_in(partials + (work.index * count + s) * size));
      }
    });
    const std::int64_t blocks = (most_queries_ + merge_block - 1) / merge_block;
    parallel_for(items_ * blocks, count * merge_block * shape_.d_v, [&](std::int64_t b) {
      const Item work = item(b / blocks);
      const std::int64_t first = b % blocks * merge_block, last = std::min(first + merge_block, work.count);
      for (std::int64_t s = 0; s < count; ++s) {
        const Partial partial = partial_in(partials + (work.index * count + s) * size);
        for (std::int64_t i = first; i < last; ++i) merge(work, i, partial);
      }
    });
  }
}

void OnlineAttention::add(const KvView& part, std::int64_t first_row) {
  check_part(part, first_row);
  const AttendKernel& kernel = attend_kernel(part.type, leaf_);
  if (!kernel_) pack_queries(kernel);
  require(kernel_ == &kernel, "attention: a part has rows of {}, the parts before it have not",
          name_of(part.type));
  const std::int64_t splits = (part.length + split_rows - 1) / split_rows;
  if (items_ >= 2 * threads() || splits <= 1 || threads() == 1) {
    add_by_items(part, first_row, splits);
  } else {
    add_by_splits(part, first_row, splits);
  }
}

void OnlineAttention::finish(float* lse) {
  const std::int64_t rows = queries_.tokens * shape_.h_q;
  const float unit = kernel_ && kernel_->base_two ? std::numbers::ln2_v<float> : 1.0f;
  for (std::int64_t row = 0; row < rows; ++row) {
    const bool sees_any = sum_[row] != 0.0f;
    float* acc = acc_ + row * shape_.d_v;
    const float inverse = sees_any ? 1.0f / sum_[row] : 0.0f;
    for (std::int64_t i = 0; i < shape_.d_v; ++i) acc[i] *= inverse;
    if (lse) lse[row] = sees_any ? max_[row] * unit + std::log(sum_[row]) : infinity;
  }
}

void attend(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out, float* lse,
            const LeafKernels& leaf) {
  OnlineAttention attention(shape, queries, kv.length, out, leaf);
  attention.add(kv, 0);
  attention.finish(lse);
}

}  // namespace mla
