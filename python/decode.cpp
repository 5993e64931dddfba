// Dense decoding over a paged cache (FlashMLA's flash_mla_with_kvcache without indices).
#include <algorithm>
#include <vector>

#include "mla/attention/attention.h"
#include "mla/core/error.h"
#include "python/arrays.h"
#include "python/bindings.h"

namespace mla::python {
namespace {

/// The pages of each sequence, checked.
class Pages {
 public:
  Pages(const Floats& cache, const Input& block_table, const Input& cache_seqlens, std::int64_t batch)
      : cache_(cache),
        lengths_(integers("cache_seqlens", cache_seqlens, 1)),
        table_(integers("block_table", block_table, 2)) {
    require(lengths_.size() == batch, "cache_seqlens: found {} sequences, expected {}, as q has",
            lengths_.size(), batch);
    require(block_table.shape[0] == batch, "block_table: found {} sequences, expected {}, as q has",
            block_table.shape[0], batch);
    require(cache.shape[1] == 1 || cache.strides[1] >= row_bytes(),
            "k_cache: found rows {} bytes apart, expected at least the {} of a row", cache.strides[1],
            row_bytes());
    per_sequence_ = block_table.shape[1];
    pages_.assign(static_cast<std::size_t>(batch * per_sequence_), nullptr);
    for (std::int64_t b = 0; b < batch; ++b) list(b);
  }

  std::int64_t length(std::int64_t sequence) const { return lengths_[sequence]; }

  KvView view(std::int64_t sequence) const {
    return {cache_.type,
            pages_.data() + sequence * per_sequence_,
            0,
            cache_.shape[1],
            cache_.shape[1] > 1 ? cache_.strides[1] : row_bytes(),
            length(sequence),
            0,
            0,
            cache_.strides[2]};
  }

 private:
  std::int64_t row_bytes() const { return cache_.shape[3] * size_of(cache_.type); }  // of a head
  void list(std::int64_t b) {
    const std::int64_t page_rows = cache_.shape[1], room = per_sequence_ * page_rows;
    require(lengths_[b] >= 0 && lengths_[b] <= room,
            "cache_seqlens[{}]: found {}, expected 0 to {}, which block_table has room for", b, lengths_[b],
            room);
    for (std::int64_t i = 0; i * page_rows < lengths_[b]; ++i) {
      const std::int32_t block = table_[b * per_sequence_ + i];
      require(block >= 0 && block < cache_.shape[0], "block_table[{}, {}]: found block {}, k_cache has {}", b,
              i, block, cache_.shape[0]);
      pages_[b * per_sequence_ + i] = cache_.at(block);
    }
  }

  const Floats& cache_;
  Buffer<std::int32_t> lengths_, table_;
  std::int64_t per_sequence_ = 0;
  std::vector<const std::byte*> pages_;
};

/// Where results go: [n][m][h_q]...
struct Results {
  Floats out, lse;
};

/// Queries [n][m][h_q][d] of the sequences from `first` on, each with `behind` tokens more behind them.
void attend_part(const AttentionShape& shape, const Floats& q, const Pages& pages, std::int64_t first,
                 std::int64_t behind, const Results& to) {
  thread_local Buffer<float> queries_memory, out_memory, lse_memory;
  const std::int64_t n = q.shape[0], m = q.shape[1], h = shape.h_q;
  const float* queries = contiguous(q, queries_memory);
  float* const out = out_memory.resize(n * m * h * shape.d_v);
  float* const lse = lse_memory.resize(n * m * h);
  std::vector<AttentionSequence> sequences;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t place = i * m * h;
    KvView kv = pages.view(first + i);
    if (shape.causal) kv.length = std::max(kv.length - behind, std::int64_t{0});
    sequences.push_back({{queries + place * shape.d_qk, m, h * shape.d_qk, shape.d_qk},
                         kv,
                         out + place * shape.d_v,
                         lse + place});
  }
  attend(shape, sequences);
  write(out, to.out);
  write(lse, to.lse);
}

void dense_decode(const Input& q_array, const Input& cache_array, const Input& block_table,
                  const Input& cache_seqlens, const Output& out_array, const Output& lse_array, float scale,
                  bool causal) {
  const Floats q = floats("q", q_array, 4), cache = floats("k_cache", cache_array, 4);
  const Floats out = floats("out", out_array, 4), lse = floats("softmax_lse", lse_array, 3);
  const std::int64_t batch = q.shape[0], tokens = q.shape[1], heads = q.shape[2], d = q.shape[3];
  const std::int64_t kv_heads = cache.shape[2], d_v = out.shape[3];
  expect_size(cache, 3, d);
  expect_dense_rows(cache, size_of(cache.type));
  require(cache.shape[1] > 0, "k_cache: found pages of no rows");
  require(kv_heads >= 1 && heads % kv_heads == 0, "q: found {} heads, expected a multiple of k_cache's {}",
          heads, kv_heads);
  const Pages pages(cache, block_table, cache_seqlens, batch);

  nb::gil_scoped_release released;
  const AttentionShape shape{heads, kv_heads, d, d_v, scale, causal};
  const std::int64_t bytes = heads * (d + d_v) * size_of(DType::f32);  // of a token
  const std::int64_t most_tokens = std::max(part_bytes / bytes, std::int64_t{1});
  const std::int64_t most_sequences =
      std::max(most_tokens / std::max(tokens, std::int64_t{1}), std::int64_t{1});
  for (std::int64_t b = 0; b < batch; b += most_sequences) {
    for (std::int64_t t = 0; t < tokens; t += most_tokens) {
      const std::int64_t n = std::min(most_sequences, batch - b), m = std::min(most_tokens, tokens - t);
      const auto of = [&](const Floats& all) { return part(part(all, b, n), t, m, 1); };
      attend_part(shape, of(q), pages, b, tokens - t - m, {of(out), of(exchanged(lse, 1, 2))});
    }
  }
}

}  // namespace

void bind_decode(nb::module_& m) {
  using namespace nb::literals;
  m.def("dense_decode", &dense_decode, "q"_a, "k_cache"_a, "block_table"_a, "cache_seqlens"_a, "out"_a,
        "lse"_a, "scale"_a, "causal"_a,
        "Attention over a paged cache. q [b, s_q, h_q, d], k_cache [blocks, page, h_kv, d], block_table [b, "
        "n],\n"
        "cache_seqlens [b]; writes out [b, s_q, h_q, d_v] and lse [b, h_q, s_q]. Throws ValueError naming "
        "the argument.");
}

}  // namespace mla::python
