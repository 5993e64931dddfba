#include "mla/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mla/core/error.h"
#include "mla/core/parallel.h"

namespace mla {
namespace {

constexpr std::int64_t head_block = 16;
constexpr float infinity = std::numeric_limits<float>::infinity();

void check(const AttentionShape& s) {
  require(
      s.h_q >= 1 && s.h_kv >= 1 && s.d_qk >= 1 && s.d_v >= 1 && s.h_q % s.h_kv == 0,
      "attention: found h_q {}, h_kv {}, d_qk {}, d_v {}, expected positive sizes and h_q a multiple of h_kv",
      s.h_q, s.h_kv, s.d_qk, s.d_v);
}

}  // namespace

struct OnlineAttention::Item {
  std::int64_t token, kv_head, first_head, heads;
};

struct OnlineAttention::Partial {
  float* max;  // [heads]
  float* sum;  // [heads]
  float* acc;  // [heads][d_v]

  static std::int64_t size(std::int64_t d_v) { return head_block * (d_v + 2); }
  static Partial in(float* memory) { return {memory, memory + head_block, memory + 2 * head_block}; }
};

OnlineAttention::OnlineAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length,
                                 float* out, const LeafKernels& leaf)
    : shape_(shape), queries_(queries), kv_length_(kv_length), leaf_(leaf), acc_(out) {
  check(shape);
  group_ = shape.h_q / shape.h_kv;
  blocks_ = (group_ + head_block - 1) / head_block;
  const std::int64_t rows = queries.tokens * shape.h_q;
  std::fill_n(max_.resize(rows), rows, -infinity);
  sum_.resize(rows);
  std::fill_n(acc_, rows * shape.d_v, 0.0f);
}

OnlineAttention::Item OnlineAttention::item(std::int64_t index) const {
  const std::int64_t block = index % blocks_;
  const std::int64_t kv_head = index / blocks_ % shape_.h_kv;
  const std::int64_t first = block * head_block;
  return {index / (blocks_ * shape_.h_kv), kv_head, kv_head * group_ + first,
          std::min(head_block, group_ - first)};
}

std::int64_t OnlineAttention::visible_rows(std::int64_t token) const {
  if (!shape_.causal) return kv_length_;
  return std::max(std::int64_t{0}, kv_length_ - queries_.tokens + token + 1);
}

void OnlineAttention::attend_split(const Item& item, const KvView& part, std::int64_t first_row,
                                   std::int64_t split, Partial out) const {
  std::fill_n(out.max, item.heads, -infinity);
  std::fill_n(out.sum, item.heads, 0.0f);
  std::fill_n(out.acc, item.heads * shape_.d_v, 0.0f);
  const std::byte* rows[AttendTile::max_rows];
  AttendTile tile{queries_.data + item.token * queries_.token_stride + item.first_head * queries_.head_stride,
                  queries_.head_stride,
                  item.heads,
                  shape_.d_qk,
                  shape_.d_v,
                  shape_.scale,
                  rows,
                  0,
                  part.key_offset,
                  part.value_offset,
                  out.max,
                  out.sum,
                  out.acc};
  const std::int64_t begin = split * split_rows;
  const std::int64_t end = std::min({begin + split_rows, part.length, visible_rows(item.token) - first_row});
  for (std::int64_t row = begin; row < end; row += tile.num_rows) {
    tile.num_rows = std::min(AttendTile::max_rows, end - row);
    for (std::int64_t i = 0; i < tile.num_rows; ++i)
      rows[i] = part.row(row + i) + item.kv_head * part.head_bytes;
    (part.type == DType::bf16 ? leaf_.attend_bf16 : leaf_.attend_f32)(tile);
  }
}

void OnlineAttention::merge(const Item& item, const Partial& partial) {
  for (std::int64_t h = 0; h < item.heads; ++h) {
    if (partial.sum[h] == 0.0f) continue;  // this query sees no row of the split
    const std::int64_t row = item.token * shape_.h_q + item.first_head + h;
    const float top = std::max(max_[row], partial.max[h]);
    const float old_weight = std::exp(max_[row] - top);
    const float new_weight = std::exp(partial.max[h] - top);
    max_[row] = top;
    sum_[row] = sum_[row] * old_weight + partial.sum[h] * new_weight;
    float* acc = acc_ + row * shape_.d_v;
    const float* added = partial.acc + h * shape_.d_v;
    for (std::int64_t i = 0; i < shape_.d_v; ++i) acc[i] = acc[i] * old_weight + added[i] * new_weight;
  }
}

void OnlineAttention::add(const KvView& part, std::int64_t first_row) {
  require(first_row % split_rows == 0, "attention: part begins at row {}, expected a multiple of {}",
          first_row, split_rows);
  require(part.length % split_rows == 0 || first_row + part.length == kv_length_,
          "attention: part of {} rows from row {} neither ends the {} rows nor at a multiple of {}",
          part.length, first_row, kv_length_, split_rows);
  require(part.type == DType::f32 || part.type == DType::bf16, "attention over rows of {}: not supported",
          name_of(part.type));
  const std::int64_t items = queries_.tokens * shape_.h_kv * blocks_;
  const std::int64_t splits = (part.length + split_rows - 1) / split_rows;
  const std::int64_t row_work = std::min(group_, head_block) * (shape_.d_qk + shape_.d_v);
  const std::int64_t partial_size = Partial::size(shape_.d_v);
  if (items >= 2 * threads() || splits == 1) {  // enough queries: each thread walks all splits of its own
    parallel_for(items, std::min(part.length, kv_length_) * row_work, [&](std::int64_t i) {
      thread_local Buffer<float> memory;
      const Partial partial = Partial::in(memory.resize(partial_size));
      const Item work = item(i);
      for (std::int64_t split = 0; split < splits; ++split) {
        attend_split(work, part, first_row, split, partial);
        merge(work, partial);
      }
    });
    return;
  }
  // Few queries over many rows: splits run side by side, a bounded number at a time, and are merged in the
  // same order.
  const std::int64_t wave = std::min(splits, 4 * static_cast<std::int64_t>(threads()));
  Buffer<float> memory(items * wave * partial_size);
  for (std::int64_t begin = 0; begin < splits; begin += wave) {
    const std::int64_t count = std::min(wave, splits - begin);
    parallel_for(items * count, split_rows * row_work, [&](std::int64_t i) {
      attend_split(item(i / count), part, first_row, begin + i % count,
                   Partial::in(memory.data() + i * partial_size));
    });
    parallel_for(items, count * head_block * shape_.d_v, [&](std::int64_t i) {
      for (std::int64_t s = 0; s < count; ++s) {
        merge(item(i), Partial::in(memory.data() + (i * count + s) * partial_size));
      }
    });
  }
}

void OnlineAttention::finish(float* lse) {
  const std::int64_t rows = queries_.tokens * shape_.h_q;
  for (std::int64_t row = 0; row < rows; ++row) {
    const bool sees_any = sum_[row] != 0.0f;
    float* acc = acc_ + row * shape_.d_v;
    const float inverse = sees_any ? 1.0f / sum_[row] : 0.0f;
    for (std::int64_t i = 0; i < shape_.d_v; ++i) acc[i] *= inverse;
    if (lse) lse[row] = sees_any ? max_[row] + std::log(sum_[row]) : infinity;
  }
}

void attend(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out, float* lse,
            const LeafKernels& leaf) {
  OnlineAttention attention(shape, queries, kv.length, out, leaf);
  attention.add(kv, 0);
  attention.finish(lse);
}

}  // namespace mla
