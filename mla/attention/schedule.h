#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "mla/attention/sequence.h"
#include "mla/cache/kv_view.h"
#include "mla/core/buffer.h"

namespace mla {

/// Rows of a sequence to attend to.
struct AttentionWork {
  SequenceAttention sequence;
  KvView part;
  std::int64_t first_row;  ///< of the part, in the sequence
  bool is_all;             ///< the sequence has no other rows: results are finished
  float* lse;              ///< see AttentionSequence
};

/// Does the work of some sequences with all threads. An item's splits are folded in pairs, the pairs in
/// pairs, and so on: a tree that depends on the splits alone. So threads can take whole branches of it,
/// whose sums stay in their caches, and yet no bit depends on who did what.
class AttentionSchedule {
 public:
  void run(std::span<const AttentionWork> works);

 private:
  /// A branch of the tree, of an item or of some that are done together, done by one thread. An item's first
  /// goes to the sums of the sequence, the others' sums are kept to be merged.
  struct Unit {
    const AttentionWork* work_of;
    std::int64_t item;         // the first
    std::int64_t first, last;  // splits
    bool is_whole;             // all of the item's
    std::int64_t sums;         // where the others' are kept
    std::int64_t work;         // multiply-adds
  };

  /// An item whose units' sums are to be merged.
  struct Merge {
    const AttentionWork* work_of;
    std::int64_t item, units;
    std::int64_t sums, stride;  // where the second unit's are kept, and from each to the next
  };

  void plan();
  void add_units(const AttentionWork& w, std::int64_t pieces);
  void attend(const Unit& unit);
  void merge(const Merge& m, std::int64_t block);

  std::span<const AttentionWork> works_;
  std::vector<Unit> units_;
  std::vector<Merge> merges_;
  std::int64_t total_ = 0, kept_size_ = 0;
  Buffer<float> kept_;
};

}  // namespace mla
