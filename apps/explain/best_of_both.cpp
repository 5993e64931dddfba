// 3.1: what MHA, GQA, MQA and MLA keep for a token, and what each gives up for it.
#include <fmt/format.h>

#include <algorithm>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/model/census.h"

namespace mla::app {
namespace {

/// One attention of a model's heads.
struct Variant {
  std::string name;
  std::int64_t bytes;     ///< that a token keeps in all layers, in bf16
  std::int64_t own_keys;  ///< different keys of one token, that its heads have
  std::int64_t work;      ///< multiply-adds of a head with one cached token: score and sum
};

/// `groups`: kv heads of the GQA.
std::vector<Variant> variants_of(const ModelConfig& c, std::int64_t groups) {
  const std::int64_t n_h = c.num_heads, plain = c.qk_nope_head_dim + c.v_head_dim;
  const auto bytes = [&](std::int64_t kv_heads) {
    return c.num_layers * RowLayout::heads(kv_heads, c.qk_nope_head_dim, c.v_head_dim, DType::bf16).bytes();
  };
  return {{"MHA", bytes(n_h), n_h, plain},
          {fmt::format("GQA ({} groups)", groups), bytes(groups), groups, plain},
          {"MQA", bytes(1), 1, plain},
          {"MLA", c.num_layers * row_layout(c, DType::bf16).bytes(), n_h, c.latent_width() + c.kv_lora_rank}};
}

void add_rows(Table& table, const std::string& model, const std::vector<Variant>& all, std::int64_t heads) {
  for (const Variant& v : all)
    table.rows.push_back({model + v.name, grouped(v.bytes),
                          fmt::format("{:.1f}", ratio(all.front().bytes, v.bytes)),
                          fmt::format("{} of {}", v.own_keys, heads), grouped(v.work)});
}

/// How alike the two most alike heads' keys of a token are: the largest cosine. With `shared`, as MQA would
/// have it: every head uses head 1's W_UK.
double most_alike(const Sentence& s, std::int64_t token, bool shared) {
  const std::int64_t d_n = s.shape.qk_nope_head_dim, n_h = s.shape.num_heads;
  std::vector<float> keys(n_h * d_n);
  for (std::int64_t h = 0; h < n_h; ++h)
    matmul(MatrixView<const float>(s.row(token), 1, s.shape.kv_lora_rank),
           s.weights->w_uk(s.shape, shared ? 0 : h), DType::f32, {keys.data() + h * d_n, 1, d_n});
  double most = -1;
  for (std::int64_t a = 0; a < n_h; ++a) {
    for (std::int64_t b = 0; b < a; ++b) {
      const float *x = keys.data() + a * d_n, *y = keys.data() + b * d_n;
      most = std::max(most, dot(x, y, d_n) / (norm(x, d_n) * norm(y, d_n)));
    }
  }
  return most;
}

}  // namespace

Page tell_best_of_both(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, usual_text);
  const ModelConfig &small = with.model().config(), v3 = published("v3");
  const std::int64_t token = s.size() / 3;
  const auto ours = variants_of(small, std::max<std::int64_t>(1, small.num_heads / 2));
  const auto theirs = variants_of(v3, 8);
  page.say(
      "Attention keeps what it has read: for each token a key, which queries are compared with, and a value, "
      "which is summed up. With a key and a value for each head (multi-head attention, MHA) that is a lot. "
      "Multi-query attention (MQA) keeps one pair for all heads, grouped-query attention (GQA) one for each "
      "group of heads. Multi-head latent attention (MLA) keeps one short vector, the latent, from which each "
      "head makes its own key and value.");
  Table table{{"variant", "bytes a token", "times less", "own keys", "multiply-adds"}, {}};
  add_rows(table, "V3 ", theirs, v3.num_heads);
  add_rows(table, "ours ", ours, small.num_heads);
  page.table(std::move(table));
  page.say(fmt::format(
      "V3 is DeepSeek-V3, ours the embedded model; bytes of all layers, in 16-bit numbers. What each gives "
      "up: MHA, memory. GQA and MQA, diversity: heads of a group see every token by the same key. MLA, work: "
      "to meet a cached token costs a head of V3 {:.1f} times the multiply-adds, since the latent is longer "
      "than a key. And all that heads make of a token has to fit into {} numbers.",
      ratio(theirs[3].work, theirs[0].work), v3.latent_width()));
  BarChart chart{"Cache of one token, DeepSeek-V3", "KiB, all layers", {}};
  for (const Variant& v : theirs) chart.bars.push_back({v.name, static_cast<double>(v.bytes) / 1024});
  page.picture({std::move(chart), "The same 128 heads, four ways to remember a token.", false});

  const CacheCensus census = count_cache(v3);
  page.check("MLA keeps less than GQA of eight groups, and far less than MHA.",
             2 * census.mla == theirs[3].bytes && 2 * census.mha == theirs[0].bytes &&
                 theirs[3].bytes < theirs[1].bytes && theirs[0].bytes > 50 * theirs[3].bytes,
             fmt::format("DeepSeek-V3: {:.1f} times less than GQA, {:.1f} times less than MHA.",
                         ratio(theirs[1].bytes, theirs[3].bytes), ratio(theirs[0].bytes, theirs[3].bytes)));
  const double alike = most_alike(s, token, with.is_broken());
  page.check(
      "Still every head has a key of its own.", alike < 0.99,
      fmt::format("Embedded model, last layer, keys of the token \"{}\": the two heads most alike have "
                  "a cosine of {:.2f}; a shared key would give 1.",
                  s.tokens[token], alike));
  const auto numbers = [](const std::vector<Variant>& all) {
    nlohmann::ordered_json json;
    for (const Variant& v : all)
      json.push_back(
          {{"name", v.name}, {"bytes", v.bytes}, {"own_keys", v.own_keys}, {"multiply_adds", v.work}});
    return json;
  };
  page.numbers = {{"deepseek_v3", numbers(theirs)}, {"embedded", numbers(ours)}, {"largest_cosine", alike}};
  page.code = {{"mla/model/census.cpp", "count_cache"},
               {"mla/attention/gqa.cpp", "gqa_forward"},
               {"mla/attention/mla.cpp", "mla_forward"}};
  return page;
}

}  // namespace mla::app
