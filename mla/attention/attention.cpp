#include "mla/attention/attention.h"

#include <algorithm>
#include <vector>

#include "mla/attention/schedule.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/kernels/latent_row.h"

namespace mla {
namespace {

/// Query rows of an item for which walking all rows by itself is worth it.
constexpr std::int64_t least_item = 32;

/// Rows of one split, for a query that sees `visible` rows: more for longer sequences, so that 16 are enough.
std::int64_t split_rows_of(std::int64_t visible) {
  constexpr std::int64_t least = AttendRows::max_count;
  return std::max(std::int64_t{1}, (visible + 16 * least - 1) / (16 * least)) * least;
}

/// As many query rows as an item may have, or an even share of them if each thread gets one of a good size.
std::int64_t item_queries_of(const AttentionShape& shape, std::int64_t tokens) {
  if (shape.h_kv < 1) return AttendQueries::max_count;
  const std::int64_t group = tokens * shape.h_q / shape.h_kv;
  const std::int64_t wanted = (threads() + shape.h_kv - 1) / shape.h_kv;
  const std::int64_t each = group / wanted;
  return each >= least_item && group % (8 * wanted) == 0 ? std::min(each, AttendQueries::max_count)
                                                         : AttendQueries::max_count;
}

/// Rows of one call of a kernel. Few queries of several kv heads take turns over blocks of rows, so that
/// these are read once; since their number must not change a result, any number keeps to those blocks.
std::int64_t block_rows_of(const AttentionShape& shape, const KvView& kv, bool many_tokens) {
  constexpr std::int64_t block_bytes = 288 << 10;
  if (shape.h_kv == 1 || many_tokens) return AttendRows::max_count;
  // What is read of a row, not how far apart rows lie: that must not change a result either.
  const std::int64_t values = shape.d_qk + (kv.value_offset == kv.key_offset ? 0 : shape.d_v);
  const std::int64_t bytes = std::max(shape.h_kv * values * size_of(kv.type), std::int64_t{1});
  return std::clamp(block_bytes / bytes / 16 * 16, std::int64_t{64}, AttendRows::max_count);
}

/// What a thread that calls attention keeps from call to call.
struct Kept {
  Buffer<float> sums;  // of the works' queries
  std::vector<AttentionWork> works;
  AttentionSchedule schedule;
};

Kept& kept() {
  thread_local Kept kept;
  return kept;
}

const AttendKernel& kernel_of(const AttentionShape& shape, const KvView& kv, const LeafKernels& leaf) {
  if (kv.type == DType::f8_e4m3 || kv.type == DType::i8) {
    const bool is_latent = shape.h_kv == 1 && shape.d_v <= shape.d_qk && kv.key_offset == kv.value_offset;
    require(
        is_latent && latent_row(kv.type, shape.d_v, shape.d_qk - shape.d_v).bytes <= kv.row_bytes,
        "attention over rows of {}: found h_kv {}, d_qk {}, d_v {} and rows of {} bytes, expected the shape "
        "of their latents",
        name_of(kv.type), shape.h_kv, shape.d_qk, shape.d_v, kv.row_bytes);
  }
  return attend_kernel(kv.type, leaf, shape.d_v);
}

/// Queries [first, first + count) of a sequence, whose split size is the same.
void add_work(const AttentionShape& shape, const AttentionSequence& s, std::int64_t first, std::int64_t count,
              std::int64_t split_rows, const LeafKernels& leaf, std::vector<AttentionWork>& works) {
  QueryView queries = s.queries;
  queries.data += first * queries.token_stride;
  queries.tokens = count;
  const std::int64_t behind = s.queries.tokens - first - count;
  KvView kv = s.kv;
  if (shape.causal) kv.length = std::max(std::int64_t{0}, kv.length - behind);
  works.push_back(
      {{shape,
        queries,
        kv.length,
        s.out + first * shape.h_q * shape.d_v,
        {split_rows, block_rows_of(shape, kv, s.many_tokens), item_queries_of(shape, count), s.many_tokens}},
       kv,
       0,
       true,
       s.lse ? s.lse + first * shape.h_q : nullptr});
  SequenceAttention& sequence = works.back().sequence;
  sequence.use(kernel_of(shape, kv, leaf));
  require(!s.largest || kv.type != DType::i8, "attention over rows of int8: the largest score is not known");
  sequence.set_largest(s.largest ? s.largest + first * shape.h_q : nullptr);
}

/// Queries go together as long as they have the same split size: it depends on what a query sees, not on its
/// company.
void add_sequence(const AttentionShape& shape, const AttentionSequence& s, const LeafKernels& leaf,
                  std::vector<AttentionWork>& works) {
  const auto split_rows = [&](std::int64_t token) {
    return split_rows_of(shape.causal ? s.kv.length - s.queries.tokens + token + 1 : s.kv.length);
  };
  for (std::int64_t first = 0; first < s.queries.tokens;) {
    std::int64_t last = first + 1;
    while (last < s.queries.tokens && split_rows(last) == split_rows(first)) ++last;
    add_work(shape, s, first, last - first, split_rows(first), leaf, works);
    first = last;
  }
}

}  // namespace

void attend(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            const LeafKernels& leaf) {
  Kept& k = kept();
  k.works.clear();
  for (const AttentionSequence& s : sequences) add_sequence(shape, s, leaf, k.works);
  std::int64_t rows = 0;
  for (const AttentionWork& w : k.works) rows += w.sequence.query_rows();
  float* sums = k.sums.resize(2 * rows);
  for (AttentionWork& w : k.works) {
    w.sequence.set_sums(sums);
    sums += 2 * w.sequence.query_rows();
  }
  k.schedule.run(k.works);
}

void attend(const AttentionShape& shape, QueryView queries, const KvView& kv, float* out, float* lse,
            const LeafKernels& leaf) {
  const AttentionSequence one{queries, kv, out, lse};
  attend(shape, {&one, 1}, leaf);
}

// ---------------------------------------------------------------- part by part

OnlineAttention::OnlineAttention(const AttentionShape& shape, QueryView queries, std::int64_t kv_length,
                                 float* out, Buffer<float>& sums, const LeafKernels& leaf)
    : sequence_(shape, queries, kv_length, out,
                {part_rows, part_rows, item_queries_of(shape, queries.tokens), true}),
      leaf_(leaf) {
  sequence_.set_sums(sums.resize(2 * sequence_.query_rows()));
}

void OnlineAttention::add(const KvView& part, std::int64_t first_row) {
  const std::int64_t kv_length = sequence_.kv_length();
  require(first_row == next_row_, "attention: part begins at row {}, expected {}, where the one before ends",
          first_row, next_row_);
  require(part.length == std::min(part_rows, kv_length - first_row),
          "attention: found a part of {} rows from row {} of {}, expected {} or those that are left",
          part.length, first_row, kv_length, part_rows);
  const AttendKernel& kernel = kernel_of(sequence_.shape(), part, leaf_);
  if (!sequence_.kernel()) sequence_.use(kernel);
  require(sequence_.kernel() == &kernel, "attention: a part has rows of {}, the parts before it have not",
          name_of(part.type));
  Kept& k = kept();
  k.works.assign(1, {sequence_, part, first_row, false, nullptr});
  k.schedule.run(k.works);
  next_row_ += part.length;
}

void OnlineAttention::finish(float* lse) {
  for (std::int64_t i = 0; i < sequence_.items(); ++i) {
    const SequenceAttention::Item item = sequence_.item(i);
    sequence_.finish(item, 0, item.kinds.count(), lse);
  }
}

}  // namespace mla
