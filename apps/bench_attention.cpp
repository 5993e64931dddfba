// mla bench attention: attention over paged rows beside the ceilings of the CPU.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "apps/bench.h"
#include "mla/attention/attention.h"
#include "mla/cache/kv_cache.h"
#include "mla/core/error.h"

namespace mla::app {
namespace {

constexpr std::int64_t page_rows = 64;

/// One line of the report.
struct Case {
  DType type;
  AttentionShape shape;
  std::int64_t kv, shortest, queries, batch;
  bool mla, cold;

  RowLayout layout() const {
    return mla ? RowLayout::latent(shape.d_v, shape.d_qk - shape.d_v, type)
               : RowLayout::heads(shape.h_kv, shape.d_qk, shape.d_v, type);
  }
  /// Rows of the batch's sequence i: from `shortest` to `kv`, evenly.
  std::int64_t length(std::int64_t i) const {
    return batch == 1 ? kv : shortest + (kv - shortest) * (i % batch) / (batch - 1);
  }
  std::int64_t bytes() const {
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i < batch; ++i) rows += length(i);
    return rows * layout().bytes();
  }

  /// Two for each multiply-add of a query with a row that it sees.
  double operations() const {
    double pairs = 0;
    for (std::int64_t i = 0; i < batch; ++i) {
      for (std::int64_t t = 0; t < queries; ++t)
        pairs += static_cast<double>(std::max<std::int64_t>(0, length(i) - queries + t + 1));
    }
    return 2 * pairs * static_cast<double>(shape.h_q * (shape.d_qk + shape.d_v));
  }

  /// Conversations that the calls take turns with.
  std::int64_t sequences() const {
    if (!cold) return batch;
    return (bytes_beyond_caches() / bytes() + 1) * batch;
  }
};

std::vector<KvCache> filled_caches(const Case& c) {
  const RowLayout layout = c.layout();
  const std::int64_t pages = c.sequences() * ((c.kv + page_rows - 1) / page_rows);
  check_bench_fits(pages * page_rows * layout.bytes());
  const std::shared_ptr<PagePool> pool = shuffled_pool(layout, page_rows, pages);
  RandomValues values(layout.values());
  std::vector<KvCache> caches;
  for (std::int64_t i = 0; i < c.sequences(); ++i) {
    KvCache& cache = caches.emplace_back(pool);
    cache.extend(c.length(i));
    for (std::int64_t row = 0; row < c.length(i); ++row) cache.write(0, row, values.next(layout.values()));
  }
  return caches;
}

std::string name_of(const Case& c) {
  std::string name = fmt::format("decode {} {} rows, {} heads, {}", c.mla ? "mla" : "gqa",
                                 mla::name_of(c.type), c.shape.h_q, c.kv);
  if (c.queries > 1) name += fmt::format(", {} queries", c.queries);
  if (c.batch > 1) name += fmt::format(", batch {}", c.batch);
  if (c.batch > 1 && c.shortest < c.kv) name += fmt::format(" from {}", c.shortest);
  return name + (c.cold ? ", cold" : "");
}

nlohmann::ordered_json fields_of(const Case& c) {
  return {{"heads", c.shape.h_q},   {"queries", c.queries}, {"kv", c.kv},
          {"shortest", c.shortest}, {"batch", c.batch},     {"kv_heads", c.shape.h_kv},
          {"d_qk", c.shape.d_qk},   {"d_v", c.shape.d_v},   {"variant", c.mla ? "mla" : "gqa"}};
}

void run_case(Bench& bench, const Case& c) {
  const std::vector<KvCache> caches = filled_caches(c);
  std::vector<KvView> views;
  for (const KvCache& cache : caches) views.push_back(cache.view(0));
  const std::int64_t query_size = c.queries * c.shape.h_q * c.shape.d_qk;
  const std::int64_t out_size = c.queries * c.shape.h_q * c.shape.d_v;
  Buffer<float> queries(query_size), out(c.batch * out_size);
  Buffer<float> lse(c.batch * c.queries * c.shape.h_q);
  constexpr std::uint32_t query_seed = 2;  // of the rows' own table, some would be a query's very copies
  RandomValues(256, query_seed).fill(queries.data(), query_size);
  const QueryView query{queries.data(), c.queries, c.shape.h_q * c.shape.d_qk, c.shape.d_qk};
  std::vector<AttentionSequence> calls(static_cast<std::size_t>(c.batch),
                                       {query, {}, out.data(), lse.data()});
  for (std::int64_t i = 0; i < c.batch; ++i) {
    calls[i].out += i * out_size;
    calls[i].lse += i * c.queries * c.shape.h_q;
  }
  std::size_t next = 0;
  const auto call = [&] {
    for (AttentionSequence& sequence : calls) {
      sequence.kv = views[next];
      next = (next + 1) % views.size();
    }
    attend(c.shape, calls);
  };
  bench.run({name_of(c), "decode", c.type, c.operations(), c.bytes(), c.cold, fields_of(c), call});
}

std::vector<Case> cases_of(const AttentionBenchOptions& o) {
  const bool mla = o.variant == "mla";
  const std::int64_t d_qk = o.d_qk > 0 ? o.d_qk : mla ? 576 : 128;
  const std::int64_t d_v = o.d_v > 0 ? o.d_v : mla ? 512 : 128;
  require(!mla || d_v <= d_qk,
          "bench attention: found --d-qk {}, --d-v {}, expected values that are part of the key", d_qk, d_v);
  std::vector<Case> cases;
  const auto or_else = [](const auto& given, std::remove_cvref_t<decltype(given)> usual) {
    return given.empty() ? usual : given;
  };
  for (const std::string& rows : or_else(o.rows, {"f32", "bf16"})) {
    for (const std::int64_t heads : or_else(o.heads, {128, 64, 20, 16, 8})) {
      for (const std::int64_t kv : or_else(o.kv, {4096, 32768})) {
        const AttentionShape shape{
            heads, mla ? 1 : o.kv_heads, d_qk, d_v, 1 / std::sqrt(static_cast<float>(d_qk)), true};
        require(heads % shape.h_kv == 0,
                "bench attention: found --heads {}, expected a multiple of --kv-heads {}", heads, shape.h_kv);
        for (const std::int64_t queries : or_else(o.queries, {1})) {
          require(queries <= kv, "bench attention: found --queries {}, expected at most --kv {}", queries,
                  kv);
          const std::int64_t shortest = o.shortest > 0 ? o.shortest : kv;
          require(shortest >= queries && shortest <= kv,
                  "bench attention: found --shortest {}, expected at least --queries {} and at most --kv {}",
                  shortest, queries, kv);
          cases.push_back({dtype_named(rows, "--rows"), shape, kv, shortest, queries, o.batch, mla, o.cold});
        }
      }
    }
  }
  return cases;
}

}  // namespace

void bench_attention(const AttentionBenchOptions& options) {
  if (options.op == "prefill") return bench_prefill(options);
  if (options.op == "backward") return bench_backward(options);
  const std::vector<Case> cases = cases_of(options);
  Bench bench(options.bench, static_cast<std::int64_t>(cases.size()));
  for (const Case& c : cases) run_case(bench, c);
  bench.finish();
}

}  // namespace mla::app
