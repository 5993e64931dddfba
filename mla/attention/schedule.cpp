#include "mla/attention/schedule.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>

#include "mla/core/parallel.h"
#include "mla/core/parts.h"

namespace mla {
namespace {

/// Query rows whose sums one thread merges.
constexpr std::int64_t merge_block = 4;

/// Multiply-adds of one item, roughly.
std::int64_t work_of(const AttentionWork& w) {
  return w.part.length * w.sequence.multiply_adds_per_row();
}

/// Sums of an item's queries over a branch: [max][sum][acc of d_v] of each.
class BranchSums {
 public:
  static std::int64_t size(const SequenceAttention& s) {
    return (s.item_rows() * (s.shape().d_v + 2) + 15) / 16 * 16;
  }

  BranchSums(const SequenceAttention& s, float* memory)
      : rows_(s.item_rows()), d_v_(s.shape().d_v), memory_(memory) {}
  AttendSums operator[](std::int64_t i) const {
    return {memory_ + i, memory_ + rows_ + i, memory_ + 2 * rows_ + i * d_v_};
  }
  void clear() const {
    std::fill_n(memory_, rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(memory_ + rows_, rows_, 0.0f);
  }

 private:
  std::int64_t rows_, d_v_;
  float* memory_;
};

/// Folds the states of one unit's splits, which come in order: a pair's states at once, and branches that
/// wait for their right neighbour are kept level by level, none behind a smaller one.
class Tree {
 public:
  /// Levels that wait at most, the unit's own sums included, for a unit of `splits` splits.
  static std::int64_t levels(std::int64_t splits) {
    return std::bit_width(static_cast<std::uint64_t>(splits));
  }

  Tree() = default;
  /// The item's sums are to be in `own`, or in those of the sequence if that is null; `waiting` has room for
  /// the other levels, `stride` apart.
  Tree(const SequenceAttention& sequence, const SequenceAttention::Item& item, float* own, float* waiting,
       std::int64_t stride)
      : sequence_(&sequence), item_(item), own_(own), waiting_(waiting), stride_(stride) {
    if (own) BranchSums(sequence, own).clear();
  }

  /// A state that is first of a pair is read when the second comes, or by finish().
  void add(const std::byte* state) {
    if (splits_++ % 2 == 0) {
      first_ = state;
      return;
    }
    if (depth_++ > 0) BranchSums(*sequence_, level(depth_ - 1)).clear();
    fold(first_, state);
    for (std::int64_t pairs = splits_ / 2; pairs % 2 == 0; pairs /= 2) join();
  }

  const SequenceAttention::Item& item() const { return item_; }

  void finish() {
    if (splits_ % 2 != 0) {  // a branch of one split, whose sums join those of the one before it
      depth_ = std::max(depth_, std::int64_t{1});
      fold(first_, nullptr);
    }
    while (depth_ > 1) join();
  }

 private:
  float* level(std::int64_t depth) const { return waiting_ + (depth - 1) * stride_; }
  AttendSums sums(std::int64_t depth, std::int64_t i) const {
    if (depth == 0 && !own_) return sequence_->sums(item_, i);
    return BranchSums(*sequence_, depth == 0 ? own_ : level(depth))[i];
  }
  void fold(const std::byte* first, const std::byte* second) const {
    AttendSums into[AttendQueries::max_count];
    for (std::int64_t i = 0; i < item_.kinds.count(); ++i) into[i] = sums(depth_ - 1, i);
    sequence_->fold(item_, first, second, into);
  }
  void join() {
    --depth_;
    for (std::int64_t i = 0; i < item_.kinds.count(); ++i)
      sequence_->join(sums(depth_, i), sums(depth_ - 1, i));
  }

  const SequenceAttention* sequence_ = nullptr;
  SequenceAttention::Item item_{};
  float *own_ = nullptr, *waiting_ = nullptr;
  std::int64_t stride_ = 0;
  std::int64_t splits_ = 0, depth_ = 0;
  const std::byte* first_ = nullptr;  // of a pair
};

}  // namespace

void AttentionSchedule::run(std::span<const AttentionWork> works) {
  works_ = works;
  plan();
  kept_.resize(kept_size_);
  parallel_for(std::ssize(units_), total_ / std::max<std::int64_t>(std::ssize(units_), 1),
               [&](std::int64_t i) { attend(units_[i]); });
  constexpr std::int64_t blocks = AttendQueries::max_count / merge_block;
  if (merges_.empty()) return;
  parallel_for(std::ssize(merges_) * blocks, worth_threads,
               [&](std::int64_t i) { merge(merges_[i / blocks], i % blocks); });
}

/// Items that the threads can share evenly, or that are many, are done whole; else long ones are cut.
void AttentionSchedule::plan() {
  units_.clear();
  merges_.clear();
  kept_size_ = total_ = 0;
  std::int64_t wholes = 0;
  for (const AttentionWork& w : works_) {
    wholes += w.sequence.items() / w.sequence.items_together();
    total_ += work_of(w) * w.sequence.items();
  }
  const bool is_even = works_.size() == 1 && wholes % threads() == 0;
  const bool cuts = threads() > 1 && wholes < 8 * threads() && !is_even && total_ > 0;
  // A lone item gives each thread one branch, whose sums needn't leave its caches until the end; pieces of
  // several must be small enough to even out.
  const std::int64_t wanted = wholes == 1 ? threads() : 2 * threads();
  for (const AttentionWork& w : works_) {
    const std::int64_t whole = work_of(w) * w.sequence.items_together();
    add_units(w, cuts ? std::max(parts(wanted * whole, total_), std::int64_t{1}) : 1);
  }
  std::sort(units_.begin(), units_.end(), [](const Unit& a, const Unit& b) { return a.work > b.work; });
}

/// Cuts each item's tree into branches, about `wanted` of the same size.
void AttentionSchedule::add_units(const AttentionWork& w, std::int64_t wanted) {
  const SequenceAttention& s = w.sequence;
  const std::int64_t splits = std::max(s.splits(w.part), std::int64_t{1}), together = s.items_together();
  const auto branch = std::bit_floor(static_cast<std::uint64_t>(std::max(splits / wanted, std::int64_t{1})));
  const std::int64_t each = wanted == 1 ? splits : static_cast<std::int64_t>(branch);
  const std::int64_t units = parts(splits, each);
  const std::int64_t size = BranchSums::size(s), stride = together * size;
  for (std::int64_t item = 0; item < s.items(); item += together) {
    for (std::int64_t u = 0; u < units; ++u) {
      const std::int64_t first = u * each, last = std::min(first + each, splits);
      units_.push_back({&w, item, first, last, units == 1, kept_size_ + (u - 1) * stride,
                        work_of(w) * together * (last - first) / splits});
    }
    if (units == 1) continue;
    for (std::int64_t i = 0; i < together; ++i)
      merges_.push_back({&w, item + i, units, kept_size_ + i * size, stride});
    kept_size_ += (units - 1) * stride;
  }
}

void AttentionSchedule::attend(const Unit& unit) {
  const AttentionWork& w = *unit.work_of;
  const SequenceAttention& s = w.sequence;
  const std::int64_t together = s.items_together(), size = BranchSums::size(s);
  thread_local Buffer<std::byte> memory;  // packed queries, then the states of a pair of splits
  thread_local Buffer<float> waiting;
  std::byte* const packed = memory.resize_scratch(together * (s.packed_bytes() + 2 * s.state_bytes()));
  std::byte* const states = packed + together * s.packed_bytes();
  waiting.resize(together * size * Tree::levels(unit.last - unit.first));
  Tree trees[SequenceAttention::most_together];
  for (std::int64_t i = 0; i < together; ++i) {
    const SequenceAttention::Item item = s.item(unit.item + i);
    s.pack(item, packed + i * s.packed_bytes());
    float* own = unit.first == 0 ? nullptr : kept_.data() + unit.sums + i * size;
    trees[i] = Tree(s, item, own, waiting.data() + i * size, together * size);
  }
  for (std::int64_t split = unit.first; split < unit.last; ++split) {
    std::byte* state = states + (split - unit.first) % 2 * together * s.state_bytes();
    s.attend_split(unit.item, packed, w.part, w.first_row, split, unit.last * s.split_rows(), state);
    for (std::int64_t i = 0; i < together; ++i) trees[i].add(state + i * s.state_bytes());
  }
  for (std::int64_t i = 0; i < together; ++i) {
    trees[i].finish();
    if (unit.is_whole && w.is_all) s.finish(trees[i].item(), 0, trees[i].item().kinds.count(), w.lse);
  }
}

/// Joins the units' sums as their trees would have.
void AttentionSchedule::merge(const Merge& m, std::int64_t block) {
  const SequenceAttention& s = m.work_of->sequence;
  const SequenceAttention::Item item = s.item(m.item);
  const std::int64_t first = block * merge_block, last = std::min(first + merge_block, item.kinds.count());
  const auto sums = [&](std::int64_t unit, std::int64_t i) {
    return unit == 0 ? s.sums(item, i) : BranchSums(s, kept_.data() + m.sums + (unit - 1) * m.stride)[i];
  };
  for (std::int64_t i = first; i < last; ++i) {
    for (std::int64_t width = 1; width < m.units; width *= 2) {
      for (std::int64_t unit = 0; unit + width < m.units; unit += 2 * width)
        s.join(sums(unit + width, i), sums(unit, i));
    }
  }
  if (first < last && m.work_of->is_all) s.finish(item, first, last - first, m.work_of->lse);
}

}  // namespace mla
