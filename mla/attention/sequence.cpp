#include "mla/attention/sequence.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numbers>

#include "mla/core/buffer.h"
#include "mla/core/error.h"
#include "mla/core/parts.h"

namespace mla {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
/// Rows behind those of a call that the next one begins with, for the kernel to fetch.
constexpr std::int64_t rows_ahead = 256;

/// Sums of items that are done together, which should stay in L1 and L2 with the rows.
constexpr std::int64_t together_bytes = 128 << 10;

/// A token's heads, by the groups that they are summed in: eights first. Three heads fill a four and seven an
/// eight well enough; else the rest is taken by its binary digits, so that no lane is idle.
QueryKinds kinds_of(std::int64_t heads) {
  const std::int64_t rest = heads % 8, eights = heads - rest;
  if (rest == 7) return {heads, 0, 0, 0};
  if (rest == 3) return {eights, 3, 0, 0};
  return {eights, rest & 4, rest & 2, rest & 1};
}

}  // namespace

SequenceAttention::SequenceAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length,
                                     float* out, const Cut& cut)
    : shape_(shape), queries_(queries), kv_length_(kv_length), cut_(cut), acc_(out) {
  check_shape("attention", shape);
  group_ = shape.h_q / shape.h_kv;
  kinds_ = cut.many_tokens ? QueryKinds{group_, 0, 0, 0} : kinds_of(group_);
  blocks_ = (queries.tokens * group_ + cut.item_queries - 1) / cut.item_queries;
  items_ = blocks_ * shape.h_kv;
}

SequenceAttention::Item SequenceAttention::item(std::int64_t index) const {
  const std::int64_t first = index % blocks_ * cut_.item_queries;
  const std::int64_t end = std::min(first + cut_.item_queries, queries_.tokens * group_);
  std::int64_t before = 0;
  const auto part = [&](std::int64_t of_a_token) {  // of the rows of one kind, those in [first, end)
    const std::int64_t begin = before;
    before += queries_.tokens * of_a_token;
    return std::max(std::int64_t{0}, std::min(end, before) - std::max(first, begin));
  };
  QueryKinds kinds;
  kinds.eights = part(kinds_.eights);
  kinds.fours = part(kinds_.fours);
  kinds.twos = part(kinds_.twos);
  kinds.ones = part(kinds_.ones);
  return {index, index / blocks_, first, kinds};
}

/// The token and head of a kv head's i-th query row: kind by kind, within a kind token by token. So it
/// depends on the head alone in which kind of group a query row is summed.
SequenceAttention::Place SequenceAttention::place(std::int64_t kv_head, std::int64_t i) const {
  std::int64_t head = kv_head * group_;
  if (queries_.tokens == 1) return {0, head + i};
  for (const std::int64_t heads : {kinds_.eights, kinds_.fours, kinds_.twos, kinds_.ones}) {
    if (i < queries_.tokens * heads) return {i / heads, head + i % heads};
    i -= queries_.tokens * heads;
    head += heads;
  }
  fail("attention: no query row {}", i);
}

/// Where the sums of an item's query row i are kept: token * h_q + head.
std::int64_t SequenceAttention::sums_row(const Item& item, std::int64_t i) const {
  const Place at = place(item.kv_head, item.first + i);
  return at.token * shape_.h_q + at.head;
}

std::int64_t SequenceAttention::visible_rows(std::int64_t token) const {
  if (!shape_.causal) return kv_length_;
  return std::max(std::int64_t{0}, kv_length_ - queries_.tokens + token + 1);
}

AttendQueries SequenceAttention::queries_of(const Item& item, const std::byte* packed) const {
  return {packed, item.kinds, shape_.d_qk, shape_.d_v, shape_.scale};
}

void SequenceAttention::use(const AttendKernel& kernel) {
  kernel_ = &kernel;
  packed_bytes_ = state_bytes_ = 0;
  for (std::int64_t index = 0; index < blocks_; ++index) {
    const QueryKinds kinds = item(index).kinds;
    packed_bytes_ =
        std::max(packed_bytes_, round_up(kernel.packed_bytes(kinds, shape_.d_qk, shape_.d_v), 64));
    state_bytes_ = std::max(state_bytes_, round_up(kernel.state_bytes(kinds, shape_.d_v), 64));
  }
}

void SequenceAttention::set_sums(float* sums) {
  max_ = sums;
  sum_ = sums + query_rows();
  std::fill_n(max_, query_rows(), -infinity);
  std::fill_n(sum_, query_rows(), 0.0f);
}

void SequenceAttention::set_largest(float* largest) {
  largest_ = largest;
  if (largest) std::fill_n(largest, query_rows(), -infinity);
}

std::int64_t SequenceAttention::multiply_adds_per_row() const {
  return item_rows() * (shape_.d_qk + shape_.d_v);
}

void SequenceAttention::pack(const Item& item, std::byte* packed) const {
  const float* rows[AttendQueries::max_count];
  for (std::int64_t i = 0; i < item.kinds.count(); ++i) {
    const Place at = place(item.kv_head, item.first + i);
    rows[i] = queries_.data + at.token * queries_.token_stride + at.head * queries_.head_stride;
  }
  kernel_->pack(rows, item.kinds, shape_.d_qk, shape_.d_v, packed);
}

std::int64_t SequenceAttention::items_together() const {
  const bool fit = items_ <= most_together && items_ * state_bytes_ <= together_bytes;
  return blocks_ == 1 && fit ? items_ : 1;
}

/// Attends to the part's rows [begin, end), at most AttendRows::max_count.
void SequenceAttention::attend_rows(const Item& item, const std::byte* packed, const KvView& part,
                                    std::int64_t first_row, std::int64_t begin, std::int64_t end,
                                    std::int64_t ahead, std::span<const Lines> lines,
                                    std::byte* state) const {
  std::int32_t visible[AttendQueries::max_count];
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < item.kinds.count(); ++i) {
    const std::int64_t seen = visible_rows(place(item.kv_head, item.first + i).token) - first_row - begin;
    visible[i] = static_cast<std::int32_t>(std::clamp(seen, std::int64_t{0}, end - begin));
    most = std::max<std::int64_t>(most, visible[i]);
  }
  if (most == 0) return;
  thread_local Buffer<std::byte> copies;
  const std::byte* runs[(AttendRows::max_count + rows_ahead) / AttendRows::run];
  part.list_runs(begin, end - begin + ahead, item.kv_head * part.head_bytes,
                 part.head_row_bytes(shape_.d_qk, shape_.d_v), runs, copies);
  AttendRows rows{
      runs, part.row_bytes, most, end - begin + ahead - most, visible, part.key_offset, part.value_offset};
  if (!lines.empty()) {
    rows.ahead = 0;
    rows.lines_ahead = lines.data();
    for (const Lines& l : lines.first(lines.size() - 1)) rows.num_lines_ahead += l.count;
  }
  float largest[AttendQueries::max_count];
  if (largest_ && kernel_->base_two) {
    std::fill_n(largest, item.kinds.count(), -infinity);
    rows.largest = largest;
  }
  kernel_->attend(queries_of(item, packed), rows, state);
  if (rows.largest) raise_largest(item, largest);
}

/// Threads that have other rows of the same queries may do so at the same time: the largest of all comes out.
void SequenceAttention::raise_largest(const Item& item, const float* largest) const {
  for (std::int64_t i = 0; i < item.kinds.count(); ++i) {
    const std::atomic_ref<float> to(largest_[sums_row(item, i)]);
    float before = to.load(std::memory_order_relaxed);
    while (largest[i] > before && !to.compare_exchange_weak(before, largest[i], std::memory_order_relaxed)) {
    }
  }
}

/// The lines of rows [first, first + count) that item `i` is to fetch: where heads lie in one row its share
/// of the rows, else all of its own head's.
std::size_t SequenceAttention::list_ahead(const Item& item, std::int64_t i, const KvView& part,
                                          std::int64_t first, std::int64_t count, Lines* lines) const {
  const std::int64_t of_head = part.head_row_bytes(shape_.d_qk, shape_.d_v);
  const std::int64_t of_all = (shape_.h_kv - 1) * part.head_bytes + of_head;
  const bool in_one_row = of_all <= part.row_bytes;
  const std::int64_t offset = in_one_row ? 0 : item.kv_head * part.head_bytes;
  const std::int64_t num_lines = parts(in_one_row ? of_all : of_head, 64);
  const std::int64_t begin = in_one_row ? count * i / items_together() : 0;
  const std::int64_t end = in_one_row ? count * (i + 1) / items_together() : count;
  for (std::int64_t r = begin; r < end; ++r) *lines++ = {part.row(first + r) + offset, num_lines};
  *lines = {part.row(0), std::int64_t{1} << 62};
  return static_cast<std::size_t>(end - begin) + 1;
}

/// Attends with several kv heads to the part's rows [begin, end), a block of rows after another. Each head
/// fetches some of the next block's rows.
void SequenceAttention::attend_together(std::int64_t first_item, const std::byte* packed, const KvView& part,
                                        std::int64_t first_row, std::int64_t begin, std::int64_t end,
                                        std::int64_t end_row, std::byte* states) const {
  const std::int64_t items = items_together();
  const std::int64_t block = cut_.block_rows;
  const std::int64_t last_row = std::min(part.length, end_row);
  for (std::int64_t row = begin; row < end; row += block) {
    const std::int64_t last = std::min(row + block, end);
    const std::int64_t next = std::clamp(last_row - last, std::int64_t{0}, block);
    for (std::int64_t i = 0; i < items; ++i) {
      const Item here = item(first_item + i);
      Lines lines[AttendRows::max_count + 1];
      const std::size_t count = list_ahead(here, i, part, last, next, lines);
      attend_rows(here, packed + i * packed_bytes_, part, first_row, row, last, 0, {lines, count},
                  states + i * state_bytes_);
    }
  }
}

void SequenceAttention::attend_split(std::int64_t first_item, const std::byte* packed, const KvView& part,
                                     std::int64_t first_row, std::int64_t split, std::int64_t end_row,
                                     std::byte* states) const {
  const std::int64_t begin = split * cut_.split_rows, end = std::min(begin + cut_.split_rows, part.length);
  for (std::int64_t i = 0; i < items_together(); ++i)
    kernel_->begin(queries_of(item(first_item + i), packed + i * packed_bytes_), states + i * state_bytes_);
  if (items_together() > 1)
    return attend_together(first_item, packed, part, first_row, begin, end, end_row, states);
  for (std::int64_t row = begin; row < end; row += cut_.block_rows) {
    const std::int64_t last = std::min(row + cut_.block_rows, end);
    const std::int64_t ahead = std::clamp(std::min(part.length, end_row) - last, std::int64_t{0}, rows_ahead);
    attend_rows(item(first_item), packed, part, first_row, row, last, ahead, {}, states);
  }
}

AttendSums SequenceAttention::sums(const Item& item, std::int64_t i) const {
  const std::int64_t row = sums_row(item, i);
  return {&max_[row], &sum_[row], acc_ + row * shape_.d_v};
}

void SequenceAttention::fold(const Item& item, const std::byte* first, const std::byte* second,
                             const AttendSums* into) const {
  kernel_->fold(queries_of(item, nullptr), first, second, into);
}

void SequenceAttention::join(const AttendSums& from, const AttendSums& into) const {
  kernel_->join(from, shape_.d_v, into);
}

void SequenceAttention::finish(const Item& item, std::int64_t first, std::int64_t count, float* lse) const {
  const float unit = kernel_ && kernel_->base_two ? std::numbers::ln2_v<float> : 1.0f;
  for (std::int64_t i = first; i < first + count; ++i) {
    const std::int64_t row = sums_row(item, i);
    const bool sees_any = sum_[row] != 0.0f;
    float* acc = acc_ + row * shape_.d_v;
    const float inverse = sees_any ? 1.0f / sum_[row] : 0.0f;
    for (std::int64_t j = 0; j < shape_.d_v; ++j) acc[j] = sees_any ? acc[j] * inverse : 0.0f;
    if (largest_ && sees_any && !kernel_->base_two) largest_[row] = max_[row];
    if (lse) lse[row] = sees_any ? max_[row] * unit + std::log(sum_[row]) : infinity;
  }
}

}  // namespace mla
