// Sparse attention (FlashMLA's flash_mla_sparse_fwd, and flash_mla_with_kvcache over fp8 rows).
#include <algorithm>
#include <vector>

#include "mla/attention/selected.h"
#include "mla/core/error.h"
#include "python/arrays.h"
#include "python/bindings.h"

namespace mla::python {
namespace {

/// A paged cache of fp8 rows, whose kind its row size tells.
RowTable fp8_table(const char* name, const Input& array) {
  const Strided cache = bytes(name, array, 4);
  expect_size(cache, 2, 1);
  require(cache.shape[3] == 656 || cache.shape[3] == 584,
          "{}: found rows of {} bytes, expected 656 (512 + 64 values) or 584 (448 + 64)", name,
          cache.shape[3]);
  expect_dense_rows(cache, 1);
  require(cache.shape[1] >= 1, "{}: found pages of no rows", name);
  const bool is_656 = cache.shape[3] == 656;
  require(is_656 || cache.shape[1] == 1 || cache.strides[1] == 584,
          "{}: found rows {} bytes apart, expected 584: pages of this kind are whole", name,
          cache.strides[1]);
  return {is_656 ? RowFormat::fp8_656 : RowFormat::fp8_584,
          cache.data,
          cache.shape[0],
          cache.shape[1],
          cache.strides[0],
          cache.strides[1],
          is_656 ? 576 : 512};
}

RowTable plain_table(const Floats& kv) {
  expect_size(kv, 1, 1);
  expect_dense_rows(kv, size_of(kv.type));
  const RowFormat format = kv.type == DType::f32    ? RowFormat::f32
                           : kv.type == DType::bf16 ? RowFormat::bf16
                                                    : RowFormat::f16;
  return {format, kv.data, kv.shape[0], 1, kv.strides[0], kv.strides[0], kv.shape[2]};
}

/// indices [n][each][per_query] of a table, of which the first lengths[n] count.
struct Indices {
  const RowTable* table = nullptr;
  Buffer<std::int32_t> indices, lengths;
  std::int64_t per_query = 0, each = 1;

  /// `names` of indices and lengths.
  Indices(const RowTable* table_, const char* const names[2], const std::optional<Input>& array,
          const std::optional<Input>& length_array, std::int64_t n, std::int64_t each_)
      : table(table_), each(each_) {
    if (!array) return;
    indices = integers(names[0], *array, 3);
    for (int d = 0; d < 2; ++d)
      require(array->shape[d] == (d == 0 ? n : each), "{}: found {} in dimension {}, expected {}", names[0],
              array->shape[d], d, d == 0 ? n : each);
    per_query = array->shape[2];
    if (!length_array) return;
    lengths = integers(names[1], *length_array, 1);
    require(lengths.size() == n, "{}: found {} lengths, expected {}", names[1], lengths.size(), n);
    for (std::int64_t i = 0; i < lengths.size(); ++i)
      require(lengths[i] >= 0 && lengths[i] <= per_query, "{}[{}]: found {}, expected 0 to {}", names[1], i,
              lengths[i], per_query);
  }

  Selection of(std::int64_t query) const {
    if (per_query == 0) return {};
    return {table, indices.data() + query * per_query,
            lengths.size() > 0 ? lengths[query / each] : per_query};
  }
};

/// Null if there are none; `memory` may come to hold them.
const float* sinks_of(const std::optional<Input>& array, std::int64_t heads, Buffer<float>& memory) {
  if (!array) return nullptr;
  const Floats sinks = floats("attn_sink", *array, 1);
  expect_size(sinks, 0, heads);
  return contiguous(sinks, memory);
}

/// What a call writes: [n][tokens or not][heads]..., as its queries.
struct Results {
  Floats out, lse;
  std::optional<Floats> largest;
};

/// Attention of q [n][tokens or not][heads][d]; select(query) gives the rows of query i of all n * tokens.
template <class Select>
void attend_in_parts(const AttentionShape& shape, const Floats& q, const Results& to, const float* sinks,
                     const Select& select) {
  const std::int64_t tokens = q.dims == 4 ? q.shape[1] : 1;
  const std::int64_t each = tokens * shape.h_q * (shape.d_qk + shape.d_v) * size_of(DType::f32);
  const std::int64_t at_once = std::max(part_bytes / std::max(each, std::int64_t{1}), std::int64_t{1});
  thread_local Buffer<float> queries_memory, out_memory, lse_memory, largest_memory;
  for (std::int64_t first = 0; first < q.shape[0]; first += at_once) {
    const std::int64_t n = std::min(at_once, q.shape[0] - first), places = n * tokens * shape.h_q;
    const float* const queries = contiguous(part(q, first, n), queries_memory);
    float* const out = out_memory.resize(places * shape.d_v);
    float* const lse = lse_memory.resize(places);
    float* const largest = to.largest ? largest_memory.resize(places) : nullptr;
    std::vector<SelectedQuery> list;
    list.reserve(static_cast<std::size_t>(n * tokens));
    for (std::int64_t t = 0; t < n * tokens; ++t) {
      const auto [rows, more_rows] = select(first * tokens + t);
      const std::int64_t place = t * shape.h_q;
      list.push_back({queries + place * shape.d_qk, shape.d_qk, rows, more_rows, out + place * shape.d_v,
                      lse + place, largest ? largest + place : nullptr});
    }
    attend_selected(shape, list);
    if (sinks) apply_sinks(sinks, lse, n * tokens, shape.h_q, shape.d_v, out);
    write(out, part(to.out, first, n));
    write(lse, part(to.lse, first, n));
    if (to.largest) write(largest, part(*to.largest, first, n));
  }
}

void expect_width(std::int64_t d, const RowTable& table, const char* cache) {
  require(d == table.width, "q: found {} values a head, expected {}, as {} has", d, table.width, cache);
}

void sparse_decode(const Input& q_array, const Input& cache_array, const Input& indices,
                   const std::optional<Input>& topk_length, const std::optional<Input>& attn_sink,
                   const std::optional<Input>& extra_cache, const std::optional<Input>& extra_indices,
                   const std::optional<Input>& extra_topk_length, const Output& out_array,
                   const Output& lse_array, float scale) {
  const Floats q = floats("q", q_array, 4), out = floats("out", out_array, 4),
               lse = floats("softmax_lse", lse_array, 3);
  const std::int64_t batch = q.shape[0], tokens = q.shape[1], heads = q.shape[2];
  const RowTable table = fp8_table("k_cache", cache_array);
  const RowTable extra = extra_cache ? fp8_table("extra_k_cache", *extra_cache) : RowTable{};
  expect_width(q.shape[3], table, "k_cache");
  require(!extra_cache || extra.width == table.width,
          "extra_k_cache: found rows of {} values, expected {}, as k_cache has", extra.width, table.width);
  require(extra_cache.has_value() == extra_indices.has_value(),
          "extra_k_cache and extra_indices_in_kvcache: found one of the two, expected both or none");
  constexpr const char* names[2] = {"indices", "topk_length"};
  constexpr const char* extra_names[2] = {"extra_indices_in_kvcache", "extra_topk_length"};
  const Indices first(&table, names, indices, topk_length, batch, tokens);
  const Indices second(&extra, extra_names, extra_indices, extra_topk_length, batch, tokens);
  Buffer<float> sinks_memory;
  const float* const sinks = sinks_of(attn_sink, heads, sinks_memory);

  nb::gil_scoped_release released;
  attend_in_parts({heads, 1, table.width, out.shape[3], scale, false}, q, {out, exchanged(lse, 1, 2), {}},
                  sinks, [&](std::int64_t i) { return std::pair(first.of(i), second.of(i)); });
}

void sparse_prefill(const Input& q_array, const Input& kv_array, const Input& indices,
                    const std::optional<Input>& topk_length, const std::optional<Input>& attn_sink,
                    const Output& out_array, const Output& max_logits_array, const Output& lse_array,
                    float scale) {
  const Floats q = floats("q", q_array, 3), kv = floats("kv", kv_array, 3), out = floats("out", out_array, 3);
  const Floats max_logits = floats("max_logits", max_logits_array, 2), lse = floats("lse", lse_array, 2);
  const std::int64_t tokens = q.shape[0], heads = q.shape[1];
  const RowTable table = plain_table(kv);
  expect_width(q.shape[2], table, "kv");
  constexpr const char* names[2] = {"indices", "topk_length"};
  const Indices first(&table, names, indices, topk_length, tokens, 1);
  Buffer<float> sinks_memory;
  const float* const sinks = sinks_of(attn_sink, heads, sinks_memory);

  nb::gil_scoped_release released;
  attend_in_parts({heads, 1, table.width, out.shape[2], scale, false}, q, {out, lse, max_logits}, sinks,
                  [&](std::int64_t i) { return std::pair(first.of(i), Selection{}); });
}

}  // namespace

void bind_sparse(nb::module_& m) {
  using namespace nb::literals;
  m.def("sparse_decode", &sparse_decode, "q"_a, "k_cache"_a, "indices"_a, "topk_length"_a.none(),
        "attn_sink"_a.none(), "extra_k_cache"_a.none(), "extra_indices"_a.none(),
        "extra_topk_length"_a.none(), "out"_a, "lse"_a, "scale"_a,
        "Attention over the rows of a paged fp8 cache that indices [b, s_q, n] name.");
  m.def("sparse_prefill", &sparse_prefill, "q"_a, "kv"_a, "indices"_a, "topk_length"_a.none(),
        "attn_sink"_a.none(), "out"_a, "max_logits"_a, "lse"_a, "scale"_a,
        "Attention of q [s_q, h_q, d] over the rows of kv [s_kv, 1, d] that indices [s_q, 1, n] name.");
}

}  // namespace mla::python
