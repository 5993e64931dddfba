// mla bench attention --op prefill: explicit attention of many new tokens beside the ceilings of the CPU.
#include <fmt/format.h>

#include <cmath>
#include <memory>

#include "apps/bench.h"
#include "mla/attention/prefill.h"
#include "mla/cache/kv_cache.h"
#include "mla/core/error.h"
#include "mla/kernels/prefill.h"

namespace mla::app {
namespace {

constexpr std::int64_t page_rows = 64, d_c = 512, d_r = 64;

/// One line of the report.
struct PrefillCase {
  DType type;
  AttentionShape shape;
  std::int64_t queries, kv;
  bool mla;

  RowLayout layout() const {
    return mla ? RowLayout::latent(d_c, d_r, type)
               : RowLayout::heads(shape.h_kv, shape.d_qk, shape.d_v, type);
  }
  std::int64_t d_n() const { return shape.d_qk - d_r; }
  std::int64_t weight_values() const { return shape.h_q * (d_n() + shape.d_v) * d_c; }

  /// Two for each multiply-add of a query with a row that it sees, and of W_UK and W_UV with each row.
  double operations() const {
    const auto n = static_cast<double>(kv), m = static_cast<double>(queries);
    const double pairs = m * (n - m) + m * (m + 1) / 2;
    const double attention = pairs * static_cast<double>(shape.h_q * (shape.d_qk + shape.d_v));
    return 2 * (attention + (mla ? n * static_cast<double>(weight_values()) : 0));
  }
};

std::string name_of(const PrefillCase& c) {
  std::string name = fmt::format("prefill {} {} rows, {} heads, {}", c.mla ? "mla" : "gqa",
                                 mla::name_of(c.type), c.shape.h_q, c.queries);
  return c.kv > c.queries ? name + fmt::format(" after {}", c.kv - c.queries) : name;
}

nlohmann::ordered_json fields_of(const PrefillCase& c) {
  return {{"heads", c.shape.h_q},
          {"queries", c.queries},
          {"kv", c.kv},
          {"kv_heads", c.mla ? 1 : c.shape.h_kv},
          {"d_qk", c.shape.d_qk},
          {"d_v", c.shape.d_v},
          {"variant", c.mla ? "mla" : "gqa"}};
}

Buffer<bf16> random_weights(std::int64_t values) {
  Buffer<bf16> weights(values);
  RandomValues random(d_c);
  const float scale = 1 / std::sqrt(static_cast<float>(d_c));
  for (std::int64_t i = 0; i < values; i += d_c) {
    const float* row = random.next(d_c);
    for (std::int64_t j = 0; j < d_c; ++j) weights[i + j] = to_bf16(scale * row[j]);
  }
  return weights;
}

void run_case(Bench& bench, const PrefillCase& c) {
  const RowLayout layout = c.layout();
  const AttentionShape& s = c.shape;
  const std::int64_t query_width = s.h_q * s.d_qk, out_width = s.h_q * s.d_v;
  check_bench_fits(c.kv * layout.bytes() + 4 * c.queries * (query_width + out_width) +
                   (c.mla ? 2 * c.weight_values() : 0));
  KvCache cache(shuffled_pool(layout, page_rows, (c.kv + page_rows - 1) / page_rows));
  cache.extend(c.kv);
  RandomValues values(layout.values());
  for (std::int64_t row = 0; row < c.kv; ++row) cache.write(0, row, values.next(layout.values()));
  const KvView view = cache.view(0);
  Buffer<float> queries(c.queries * query_width), out(c.queries * out_width);
  RandomValues(256).fill(queries.data(), queries.size());
  const Buffer<bf16> weights = random_weights(c.mla ? c.weight_values() : 0);
  const Weight kv_b_proj{DType::bf16, reinterpret_cast<const std::byte*>(weights.data()),
                         c.mla ? c.weight_values() / d_c : 0, d_c};
  const LatentShape latent{s.h_q, d_c, c.d_n(), d_r, s.d_v, s.scale};
  const auto call = [&] {
    if (c.mla) {
      prefill_latents(latent, kv_b_proj, {queries.data(), c.queries, query_width}, view, layout,
                      {out.data(), c.queries, out_width});
    } else {
      prefill_heads(s, {queries.data(), c.queries, query_width, s.d_qk}, view, out.data());
    }
  };
  bench.run(
      {name_of(c), "prefill", DType::bf16, c.operations(), c.kv * layout.bytes(), false, fields_of(c), call});
}

PrefillCase make_case(const AttentionBenchOptions& o, DType type, std::int64_t heads, std::int64_t queries,
                      std::int64_t kv) {
  const bool mla = o.variant == "mla";
  const std::int64_t d_qk = o.d_qk > 0 ? o.d_qk : mla ? 192 : 128, d_v = o.d_v > 0 ? o.d_v : 128;
  const std::int64_t kv_heads = mla ? heads : o.kv_heads;
  require(!mla || d_qk > d_r, "bench attention: found --d-qk {}, expected more than the {} rotated ones",
          d_qk, d_r);
  require(mla || type == DType::bf16, "bench attention: found --rows {}, expected bf16 for --variant gqa",
          mla::name_of(type));
  require(heads % kv_heads == 0, "bench attention: found --heads {}, expected a multiple of --kv-heads {}",
          heads, kv_heads);
  require(queries <= kv, "bench attention: found --queries {}, expected at most --kv {}", queries, kv);
  const AttentionShape shape{heads, kv_heads, d_qk, d_v, 1 / std::sqrt(static_cast<float>(d_qk)), true};
  return {type, shape, queries, kv, mla};
}

std::vector<PrefillCase> cases_of(const AttentionBenchOptions& o) {
  struct Size {
    std::int64_t queries, kv;
  };
  std::vector<Size> sizes;
  for (const std::int64_t queries : o.queries) {
    if (o.kv.empty()) sizes.push_back({queries, queries});
    for (const std::int64_t kv : o.kv) sizes.push_back({queries, kv});
  }
  if (o.queries.empty()) sizes = {{512, 512}, {4096, 4096}, {256, 8448}};
  std::vector<PrefillCase> cases;
  for (const std::string& rows : o.rows.empty() ? std::vector<std::string>{"bf16"} : o.rows) {
    for (const std::int64_t heads : o.heads.empty() ? std::vector<std::int64_t>{16} : o.heads) {
      for (const Size& size : sizes)
        cases.push_back(make_case(o, dtype_named(rows, "--rows"), heads, size.queries, size.kv));
    }
  }
  return cases;
}

}  // namespace

void bench_prefill(const AttentionBenchOptions& options) {
  require(has_prefill(),
          "bench attention: --op prefill measures products of bf16 pairs, which this CPU lacks or MLA_ISA "
          "rules out");
  require(!options.queries.empty() || options.kv.empty(),
          "bench attention: found --kv without --queries, expected both for --op prefill");
  require(options.batch == 1 && !options.cold,
          "bench attention: --op prefill takes one sequence at a time, hot");
  const std::vector<PrefillCase> cases = cases_of(options);
  Bench bench(options.bench, static_cast<std::int64_t>(cases.size()));
  for (const PrefillCase& c : cases) run_case(bench, c);
  bench.finish();
}

}  // namespace mla::app
