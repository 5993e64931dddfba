// 3.5.2: every head makes its own keys from the one latent, so heads stay different.
#include "mla/compare/head_diversity.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "apps/load.h"
#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"

namespace mla::app {
namespace {

constexpr const char* text =
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and "
    "darkness was upon the face of the deep. And the Spirit of God moved upon the face of the waters. And "
    "God "
    "said, Let there be light: and there was light.";

/// Content keys [tokens][d_n] of a head: W_UK c.
std::vector<float> content_keys(const Sentence& s, std::int64_t head) {
  const std::int64_t d_n = s.shape.qk_nope_head_dim;
  std::vector<float> keys(s.size() * d_n);
  matmul({s.rows.data(), s.size(), s.shape.kv_lora_rank, s.shape.latent_width()},
         s.weights->w_uk(s.shape, head), DType::f32, {keys.data(), s.size(), d_n});
  return keys;
}

/// Products of each two tokens' keys [tokens][tokens], the keys centred: what a head can tell apart, whatever
/// axes it has them in.
std::vector<float> gram(std::vector<float> keys, std::int64_t tokens) {
  const std::int64_t d = std::ssize(keys) / tokens;
  for (std::int64_t i = 0; i < d; ++i) {
    double mean = 0;
    for (std::int64_t t = 0; t < tokens; ++t) mean += keys[t * d + i] / static_cast<double>(tokens);
    for (std::int64_t t = 0; t < tokens; ++t) keys[t * d + i] -= static_cast<float>(mean);
  }
  std::vector<float> products(tokens * tokens);
  const MatrixView<const float> k(keys.data(), tokens, d);
  matmul(k, as_weight(k), DType::f32, {products.data(), tokens, tokens});
  return products;
}

/// What heads are like that read those keys: head h the keys of head keys_of[h].
HeadDiversity measure(const Sentence& s, const std::vector<std::int64_t>& keys_of, bool with_rotated) {
  const std::int64_t n_h = s.shape.num_heads, d_n = s.shape.qk_nope_head_dim;
  const std::int64_t d_r = with_rotated ? s.shape.qk_rope_head_dim : 0, width = d_n + d_r;
  std::vector<float> queries(s.size() * n_h * width), keys(queries.size());
  for (std::int64_t h = 0; h < n_h; ++h) {
    const std::vector<float> content = content_keys(s, keys_of[h]);
    for (std::int64_t t = 0; t < s.size(); ++t) {
      float* key = keys.data() + (t * n_h + h) * width;
      std::copy_n(s.row(t) + s.shape.kv_lora_rank, d_r, std::copy_n(content.data() + t * d_n, d_n, key));
      std::copy_n(s.query(t, h), width, queries.data() + (t * n_h + h) * width);
    }
  }
  return head_diversity(
      {{n_h, n_h, width, s.shape.v_head_dim, static_cast<float>(s.shape.softmax_scale), true},
       s.size(),
       {queries.data(), s.size(), n_h * width},
       {keys.data(), s.size(), n_h * width},
       width});
}

struct Heads {
  std::vector<double> similarity;  ///< [n_h][n_h] cosine of two heads' gram matrices
  double most_similar = 0;         ///< of two different heads
  HeadDiversity content, whole;    ///< by the content part; with the rotated part, which all heads share
};

Heads own_keys(const Sentence& s, bool broken) {
  Heads heads;
  std::vector<std::int64_t> keys_of;
  std::vector<std::vector<float>> grams;
  for (std::int64_t h = 0; h < s.shape.num_heads; ++h) {
    keys_of.push_back(broken ? 0 : h);
    grams.push_back(gram(content_keys(s, keys_of.back()), s.size()));
  }
  for (std::size_t a = 0; a < grams.size(); ++a) {
    for (std::size_t b = 0; b < grams.size(); ++b) {
      heads.similarity.push_back(cosine(grams[a], grams[b]));
      if (a != b) heads.most_similar = std::max(heads.most_similar, heads.similarity.back());
    }
  }
  heads.content = measure(s, keys_of, false);
  heads.whole = measure(s, keys_of, true);
  return heads;
}

/// The same if all heads read one head's key, the best choice of it for each number.
Heads shared_key(const Sentence& s) {
  Heads best;
  best.most_similar = 1;
  const auto keep_best = [](HeadDiversity& kept, const HeadDiversity& other) {
    kept.key_rank = std::max(kept.key_rank, other.key_rank);
    kept.map_distance = std::max(kept.map_distance, other.map_distance);
  };
  for (std::int64_t h = 0; h < s.shape.num_heads; ++h) {
    const std::vector<std::int64_t> keys_of(s.shape.num_heads, h);
    keep_best(best.content, measure(s, keys_of, false));
    keep_best(best.whole, measure(s, keys_of, true));
  }
  return best;
}

HeatMap between_heads(std::string title, std::int64_t heads, std::vector<double> values, double high) {
  HeatMap map{std::move(title), "head", "head", {}, {}, heads, heads, std::move(values), 0, high};
  for (std::int64_t h = 0; h < heads; ++h) map.x_names.push_back(fmt::format("{}", h + 1));
  map.y_names = map.x_names;
  return map;
}

/// Distances of each two heads' attention maps of a trained model, mean over its layers.
std::vector<double> trained_distances(const nlohmann::json& model) {
  std::vector<double> mean;
  for (const nlohmann::json& layer : model.at("layers")) {
    const std::vector<double> distances = layer.at("map_distances");
    mean.resize(distances.size());
    for (std::size_t i = 0; i < mean.size(); ++i)
      mean[i] += distances[i] / static_cast<double>(model.at("layers").size());
  }
  return mean;
}

void show_trained(const nlohmann::json& results, Page& page) {
  BarChart distances{"Heads of models trained alike", "distance between attention maps", {}, {}};
  BarChart ranks{"Keys of models trained alike", "directions that they use", {}, {}};
  nlohmann::ordered_json numbers = nlohmann::ordered_json::array();
  std::vector<HeatMap> maps;
  double most = 1e-3;  // all maps have one scale
  for (const nlohmann::json& model : results.at("models")) {
    if (!model.at("compares_attention").get<bool>()) continue;
    distances.bars.push_back({model.at("name"), model.at("map_distance")});
    ranks.bars.push_back({model.at("name"), model.at("key_rank")});
    std::vector<double> map = trained_distances(model);
    for (const double distance_of_two : map) most = std::max(most, distance_of_two);
    const auto heads = static_cast<std::int64_t>(std::lround(std::sqrt(static_cast<double>(map.size()))));
    maps.push_back(between_heads(model.at("name").get<std::string>() + ": distance between two heads' maps",
                                 heads, std::move(map), 1));
    numbers.push_back({{"name", model.at("name")},
                       {"map_distance", model.at("map_distance")},
                       {"key_rank", model.at("key_rank")}});
  }
  const std::string from =
      fmt::format("Measured by `mla compare` on {}, not in this run.", results.at("date").get<std::string>());
  page.picture({std::move(distances), from});
  page.picture({std::move(ranks), from});
  for (HeatMap& map : maps) {
    map.high = most;
    page.picture({std::move(map), "Mean over the layers.", true});
  }
  page.numbers["trained_alike"] = numbers;
}

/// MHA, GQA, MQA and MLA trained alike, from the results of `mla compare`, where they lie beside the model;
/// nothing without them.
void add_trained_comparison(const std::filesystem::path& file, Page& page) {
  if (!std::filesystem::exists(file)) return;
  try {
    show_trained(parse_json(read_text(file), file.string()), page);
  } catch (const nlohmann::json::exception& e) {
    fail("{}: found {}, expected the results of `mla compare`", file.string(), e.what());
  }
}

void tell_numbers(const Sentence& s, const Heads& own, const Heads& shared, Page& page) {
  const std::int64_t n_h = s.shape.num_heads;
  page.picture({between_heads("How alike two heads' keys are", n_h, own.similarity, 1),
                "1: the same keys, up to a turn and a scale. With a shared key every cell would be 1."});
  const auto row = [](const char* name, const char* format, double a, double b) {
    return std::vector<std::string>{name, fmt::format(fmt::runtime(format), a),
                                    fmt::format(fmt::runtime(format), b)};
  };
  page.table({{"", "own keys", "one shared key"},
              {row("most alike two heads' keys", "{:.2f}", own.most_similar, shared.most_similar),
               row("directions that all keys use", "{:.2f}", own.content.key_rank, shared.content.key_rank),
               row("distance between attention maps", "{:.3f}", own.content.map_distance,
                   shared.content.map_distance),
               row("directions, rotated part included", "{:.2f}", own.whole.key_rank, shared.whole.key_rank),
               row("distance, rotated part included", "{:.3f}", own.whole.map_distance,
                   shared.whole.map_distance)}});
  page.say(
      "Directions count the axes along which keys vary, from their covariance. A map is where a head looks; "
      "the distance (Jensen-Shannon) is 0 if two heads look at the same tokens, 1 if at no common one. The "
      "rotated part is one key for all heads by design, and here it outweighs the rest. All of it is a "
      "what-if, with queries trained for their own keys: what sharing costs, only training tells.");
  page.picture({between_heads("Distance between two heads' attention maps", n_h, own.content.distances, 1),
                "By the content part, mean over the queries of the text; heads with their own keys.", true});
  page.check(
      "Each head's W_UK makes keys of its own: together more varied than any one of them.",
      own.most_similar < 0.9 && own.content.key_rank > 1.1 * shared.content.key_rank &&
          own.content.map_distance > shared.content.map_distance,
      fmt::format("Content parts: similarity at most {:.2f}; {:.2f} directions against {:.2f}; maps {:.3f} "
                  "apart against {:.3f}.",
                  own.most_similar, own.content.key_rank, shared.content.key_rank, own.content.map_distance,
                  shared.content.map_distance));
}

}  // namespace

Page tell_head_diversity(Explained& with) {
  Page page;
  const Sentence s = read_sentence(with, text);
  const Heads own = own_keys(s, with.is_broken()), shared = shared_key(s);
  page.say(fmt::format(
      "Heads are worth having if each can look for something else. MQA keeps one key a token, the "
      "same for all heads. MLA keeps one latent c, of {} numbers here, but head i rebuilds a key of "
      "its own from it:",
      s.shape.kv_lora_rank));
  page.formula("k_i = W_UK,i c,      W_UK,i [d_n, d_c],   i = 1 .. n_h");
  page.say(fmt::format(
      "These are the keys of the embedded model's {} heads (last layer) for the {} tokens of Genesis 1:1-3, "
      "rebuilt from its cached latents. Beside them, what MQA would give: one head's key for all, the best "
      "choice of it.",
      s.shape.num_heads, s.size()));
  page.numbers = {{"tokens", s.size()},
                  {"similarity", own.similarity},
                  {"map_distances", own.content.distances},
                  {"map_distance", own.content.map_distance},
                  {"map_distance_shared", shared.content.map_distance},
                  {"key_rank", own.content.key_rank},
                  {"key_rank_shared", shared.content.key_rank},
                  {"whole_key_rank", own.whole.key_rank},
                  {"whole_key_rank_shared", shared.whole.key_rank},
                  {"whole_map_distance", own.whole.map_distance},
                  {"whole_map_distance_shared", shared.whole.map_distance}};
  tell_numbers(s, own, shared, page);
  add_trained_comparison((model_directory("") / "../../docs/compare/results.json").lexically_normal(), page);
  page.code = {{"mla/compare/head_diversity.cpp", "head_diversity"}, {"mla/attention/mla.cpp", "w_uk"}};
  return page;
}

}  // namespace mla::app
