// mla bench attention --op backward: the gradient of attention in f32 beside the ceilings of the CPU.
#include <fmt/format.h>

#include <cmath>

#include "apps/bench.h"
#include "mla/attention/backward.h"
#include "mla/core/error.h"

namespace mla::app {
namespace {

/// One line of the report.
struct BackwardCase {
  AttentionShape shape;
  std::int64_t queries, kv, batch;
  bool mla;

  std::int64_t head_width() const { return shape.d_qk + shape.d_v; }
  std::int64_t row_width() const { return shape.h_kv * head_width(); }
  /// Two for each multiply-add of the five products (scores, gradients by weights, by queries, keys and
  /// values), of a query with a row that it sees.
  double operations() const {
    const auto n = static_cast<double>(kv), m = static_cast<double>(queries);
    const double pairs = m * (n - m) + m * (m + 1) / 2;
    return 2 * pairs * static_cast<double>(batch * shape.h_q * (3 * shape.d_qk + 2 * shape.d_v));
  }
};

std::string name_of(const BackwardCase& c) {
  std::string name = fmt::format("backward {} {} heads, {}/{}, {}", c.mla ? "mla" : "gqa", c.shape.h_q,
                                 c.shape.d_qk, c.shape.d_v, c.queries);
  if (c.kv > c.queries) name += fmt::format(" after {}", c.kv - c.queries);
  return c.batch > 1 ? name + fmt::format(", batch {}", c.batch) : name;
}

nlohmann::ordered_json fields_of(const BackwardCase& c) {
  return {{"heads", c.shape.h_q},
          {"queries", c.queries},
          {"kv", c.kv},
          {"batch", c.batch},
          {"kv_heads", c.shape.h_kv},
          {"d_qk", c.shape.d_qk},
          {"d_v", c.shape.d_v},
          {"variant", c.mla ? "mla" : "gqa"}};
}

/// What forward would have left behind need not be exact to take the same time: the log of a sum of
/// exp(scores) of variance 1 is about the log of their number plus a half.
void run_case(Bench& bench, const BackwardCase& c) {
  const AttentionShape& s = c.shape;
  const std::int64_t tokens = c.batch * c.queries, rows = c.batch * c.kv;
  const std::int64_t query_width = s.h_q * s.d_qk, out_width = s.h_q * s.d_v;
  check_bench_fits(4 * (2 * tokens * (query_width + out_width) + 2 * rows * c.row_width()));
  Buffer<float> queries(tokens * query_width), d_queries(queries.size());
  Buffer<float> kv(rows * c.row_width()), d_kv(kv.size());
  Buffer<float> out(tokens * out_width), d_out(out.size()), lse(tokens * s.h_q);
  std::uint32_t seed = 1;
  for (Buffer<float>* values : {&queries, &kv, &out, &d_out})
    RandomValues(256, seed++).fill(values->data(), values->size());
  for (std::int64_t i = 0; i < lse.size(); ++i) {
    const std::int64_t token = i / s.h_q % c.queries;
    lse[i] = std::log(static_cast<float>(c.kv - c.queries + token + 1)) + 0.5f;
  }
  std::vector<AttentionGradient> sequences;
  for (std::int64_t i = 0; i < c.batch; ++i) {
    const std::int64_t t = i * c.queries, r = i * c.kv * c.row_width();
    sequences.push_back({{queries.data() + t * query_width, c.queries, query_width, s.d_qk},
                         kv.data() + r,
                         c.kv,
                         out.data() + t * out_width,
                         lse.data() + t * s.h_q,
                         d_out.data() + t * out_width,
                         d_queries.data() + t * query_width,
                         d_kv.data() + r});
  }
  const RowShape shape{c.row_width(), c.head_width(), s.d_qk};
  const auto call = [&] { attend_backward(s, shape, sequences); };
  bench.run({name_of(c), "backward", DType::f32, c.operations(), kv.size() * 4, false, fields_of(c), call});
}

BackwardCase make_case(const AttentionBenchOptions& o, std::int64_t heads, std::int64_t queries,
                       std::int64_t kv) {
  const bool mla = o.variant == "mla";
  const std::int64_t d_qk = o.d_qk > 0 ? o.d_qk : mla ? 192 : 128, d_v = o.d_v > 0 ? o.d_v : 128;
  const std::int64_t kv_heads = mla ? heads : o.kv_heads;
  require(heads % kv_heads == 0, "bench attention: found --heads {}, expected a multiple of --kv-heads {}",
          heads, kv_heads);
  require(queries <= kv, "bench attention: found --queries {}, expected at most --kv {}", queries, kv);
  const AttentionShape shape{heads, kv_heads, d_qk, d_v, 1 / std::sqrt(static_cast<float>(d_qk)), true};
  return {shape, queries, kv, o.batch, mla};
}

std::vector<BackwardCase> cases_of(const AttentionBenchOptions& o) {
  const auto or_else = [](const std::vector<std::int64_t>& given, std::vector<std::int64_t> usual) {
    return given.empty() ? usual : given;
  };
  std::vector<BackwardCase> cases;
  for (const std::int64_t heads : or_else(o.heads, {16})) {
    for (const std::int64_t queries : or_else(o.queries, {512, 4096})) {
      for (const std::int64_t kv : or_else(o.kv, {queries}))
        cases.push_back(make_case(o, heads, queries, kv));
    }
  }
  return cases;
}

}  // namespace

void bench_backward(const AttentionBenchOptions& options) {
  for (const std::string& rows : options.rows)
    require(rows == "f32", "bench attention: found --rows {}, expected f32 for --op backward", rows);
  require(!options.queries.empty() || options.kv.empty(),
          "bench attention: found --kv without --queries, expected both for --op backward");
  require(!options.cold && options.shortest == 0,
          "bench attention: --op backward takes sequences of one length, hot");
  const std::vector<BackwardCase> cases = cases_of(options);
  Bench bench(options.bench, static_cast<std::int64_t>(cases.size()));
  for (const BackwardCase& c : cases) run_case(bench, c);
  bench.finish();
}

}  // namespace mla::app
