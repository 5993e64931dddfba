// 3.4.1: one decode step, call by call: what is computed, read and written.
#include <fmt/format.h>

#include <cstring>

#include "apps/explain/figures.h"
#include "apps/explain/sentence.h"
#include "apps/explain/vectors.h"
#include "mla/core/clock.h"
#include "mla/core/parallel.h"
#include "mla/kernels/ops.h"
#include "mla/model/census.h"
#include "mla/runtime/session.h"

namespace mla::app {
namespace {

std::int64_t bytes_of(const Weight& w) {
  return w.rows * w.cols * size_of(w.dtype);
}
std::int64_t bytes_of(const FeedForwardWeights& w) {
  return bytes_of(w.gate_proj) + bytes_of(w.up_proj) + bytes_of(w.down_proj);
}

/// The least of some times that `work` takes, in microseconds.
template <class Work>
double microseconds(const Work& work) {
  double least = 1e9;
  for (int i = 0; i < 50; ++i) {
    const double begin = seconds_now();
    work();
    least = std::min(least, 1e6 * (seconds_now() - begin));
  }
  return least;
}

struct Step {
  std::string name, calls;
  std::int64_t weights = 0, cached = 0, written = 0;  ///< bytes
  double time = 0;                                    ///< microseconds
};

/// One layer's work on one new token, by the library's steps.
class LayerStep {
 public:
  /// `cache` already has room for the token; `stream` is what the layer reads.
  LayerStep(const Transformer& model, std::int64_t layer, KvCache& cache, std::vector<float> stream)
      : c_(model.config()),
        m_(mla_shape(c_)),
        w_(model.weights().layers[layer]),
        layer_(layer),
        cache_(cache),
        stream_(std::move(stream)),
        rotary_(c_.rope, c_.max_context) {
    rotary_.fill(cache.length() - 1, 1, table_);
  }

  /// All steps in order; `rotates_key`: whether the key is rotated, as it should be.
  void run(bool rotates_key) {
    normed_.resize(c_.hidden_size), branch_.resize(c_.hidden_size);
    queries_.resize(m_.num_heads * m_.qk_head_dim()), row_.resize(m_.latent_width());
    latent_.resize(m_.q_lora_rank), values_.resize(m_.num_heads * m_.v_head_dim);
    query_step();
    row_step(rotates_key);
    attention_step();
    output_step();
    experts_step();
  }

  const std::vector<float>& stream() const { return stream_; }
  const std::vector<Step>& steps() const { return steps_; }

 private:
  static MatrixView<float> one_row(std::vector<float>& x) {
    return {x.data(), 1, static_cast<std::int64_t>(x.size())};
  }

  void query_step() {
    const double time = microseconds([&] {
      rms_norm(one_row(stream_), w_.input_norm, c_.norm_epsilon, one_row(normed_));
      matmul(one_row(normed_), w_.mla.q_a_proj, DType::f32, one_row(latent_));
      rms_norm(one_row(latent_), w_.mla.q_a_norm, m_.norm_epsilon, one_row(latent_));
      matmul(one_row(latent_), w_.mla.q_b_proj, DType::f32, one_row(queries_));
      for (std::int64_t h = 0; h < m_.num_heads; ++h)
        rotary_.rotate(table_, 0, queries_.data() + h * m_.qk_head_dim() + m_.qk_nope_head_dim);
    });
    steps_.push_back({"queries", "q_a_proj, norm, q_b_proj, rotate",
                      bytes_of(w_.mla.q_a_proj) + bytes_of(w_.mla.q_b_proj), 0, 0, time});
  }

  void row_step(bool rotates_key) {
    const MatrixView<float> c_kv(row_.data(), 1, m_.kv_lora_rank);
    const double time = microseconds([&] {
      matmul(one_row(normed_), w_.mla.kv_a_proj, DType::f32, one_row(row_));
      rms_norm(c_kv, w_.mla.kv_a_norm, m_.norm_epsilon, c_kv);
      if (rotates_key) rotary_.rotate(table_, 0, row_.data() + m_.kv_lora_rank);
      cache_.write(layer_, cache_.length() - 1, row_.data());
    });
    steps_.push_back({"row", "kv_a_proj_with_mqa, norm, rotate", bytes_of(w_.mla.kv_a_proj), 0,
                      cache_.view(layer_).row_bytes, time});
  }

  void attention_step() {
    MlaCall call;
    call.layer = layer_, call.first_position = cache_.length() - 1, call.form = MlaForm::absorb;
    const double time = microseconds(
        [&] { mla_attend(m_, w_.mla, call, one_row(queries_), cache_, scratch_, one_row(values_)); });
    const std::int64_t read = cache_.length() * cache_.view(layer_).row_bytes;
    steps_.push_back(
        {"attention", "kv_b_proj: W_UK, attend, W_UV", bytes_of(w_.mla.kv_b_proj), read, 0, time});
  }

  void output_step() {
    const double time =
        microseconds([&] { matmul(one_row(values_), w_.mla.o_proj, DType::f32, one_row(branch_)); });
    add_scaled(one_row(branch_), c_.residual_scale, one_row(stream_));
    steps_.push_back({"output", "o_proj", bytes_of(w_.mla.o_proj), 0, 0, time});
  }

  /// REQUIRES a layer of experts.
  void experts_step() {
    const double time = microseconds([&] {
      rms_norm(one_row(stream_), w_.post_attention_norm, c_.norm_epsilon, one_row(normed_));
      moe_forward(c_.moe, w_.moe, one_row(normed_), DType::f32, moe_, one_row(branch_));
    });
    add_scaled(one_row(branch_), c_.residual_scale, one_row(stream_));
    const std::int64_t chosen = c_.moe.experts_per_token * bytes_of(w_.moe.experts[0]);
    const std::string calls =
        fmt::format("norm, {} of {} experts, the shared", c_.moe.experts_per_token, c_.moe.num_experts);
    steps_.push_back(
        {"experts", calls, bytes_of(w_.moe.gate) + chosen + bytes_of(w_.moe.shared), 0, 0, time});
  }

  const ModelConfig& c_;
  MlaShape m_;
  const LayerWeights& w_;
  std::int64_t layer_;
  KvCache& cache_;
  std::vector<float> stream_;
  Rotary rotary_;
  Rotary::Table table_;
  MlaScratch scratch_;
  MoeScratch moe_;
  std::vector<float> normed_, branch_, latent_, queries_, row_, values_;
  std::vector<Step> steps_;
};

Table table_of(const std::vector<Step>& steps) {
  Table table{{"step", "computes", "weights", "cache", "written", "µs"}, {}};
  Step all{"in all", ""};
  const auto add = [&](const Step& s) {
    table.rows.push_back({s.name, s.calls, grouped(s.weights), grouped(s.cached), grouped(s.written),
                          fmt::format("{:.1f}", s.time)});
  };
  for (const Step& s : steps) {
    add(s);
    all.weights += s.weights, all.cached += s.cached, all.written += s.written, all.time += s.time;
  }
  add(all);
  return table;
}

nlohmann::ordered_json numbers_of(const std::vector<Step>& steps) {
  nlohmann::ordered_json all;
  for (const Step& s : steps)
    all.push_back({{"step", s.name},
                   {"weight_bytes", s.weights},
                   {"cache_bytes_read", s.cached},
                   {"cache_bytes_written", s.written},
                   {"microseconds", s.time}});
  return all;
}

/// What a step of DeepSeek-V3 reads of its cache, beside what MHA would.
void tell_v3(Page& page) {
  const ModelConfig v3 = published("v3");
  const CacheCensus census = count_cache(v3);
  constexpr std::int64_t tokens = 32768;
  page.say(fmt::format(
      "Every step reads the whole cache once. For DeepSeek-V3 after {} tokens that is {}; keys and values of "
      "all heads would be {}, more than the {} billion weights, of a byte each, that it reads.",
      grouped(tokens), in_bytes(static_cast<double>(2 * tokens * census.mla)),
      in_bytes(static_cast<double>(2 * tokens * census.mha)), count_parameters(v3).active / 1000000000));
}

}  // namespace

Page tell_new_token(Explained& with) {
  Page page;
  const Transformer& model = with.model();
  const ModelConfig& c = model.config();
  const std::int64_t layer = c.num_layers - 2;  // the stream behind it is in the trace as it is
  const std::vector<std::int32_t> ids = with.tokenizer().encode(usual_text);
  SessionOptions options;
  options.form = MlaForm::absorb;
  options.cache_type = DType::bf16;
  Session session(model, options);
  session.append(std::span(ids).first(ids.size() - 1));
  KvCache cache = session.cache().fork();
  const std::vector<float> trace = session.feed_traced(std::span(ids).last(1));
  cache.extend(1);
  const auto stream = trace.begin() + layer * c.hidden_size;
  LayerStep step(model, layer, cache, {stream, stream + c.hidden_size});
  const int usual = threads();
  set_threads(1);  // calls this short would wait for each other's threads on a busy machine
  step.run(!with.is_broken());
  const double whole = microseconds([&] {
    session.truncate(cache.length() - 1);
    session.feed(std::span(ids).last(1));
  });
  set_threads(usual);

  page.say(
      fmt::format("The embedded model has read {} tokens and gets one more, \"{}\". What layer {} of {} does "
                  "then, call by call: bytes of weights and of cached rows that it reads, as they are "
                  "stored, bytes that it writes into the cache, and microseconds of one thread.",
                  ids.size() - 1, with.tokenizer().decode({&ids.back(), 1}), layer + 1, c.num_layers));
  page.table(table_of(step.steps()));
  page.say(fmt::format(
      "Attention reads the rows of all {} tokens. The new row, {} bytes of the latent and the rotated key, "
      "is the one thing that outlives the step. All {} layers and the logits of the next token: {:.0f} µs.",
      cache.length(), cache.view(layer).row_bytes, c.num_layers, whole));
  BarChart chart{fmt::format("What layer {} reads for one token", layer + 1), "bytes", {}};
  for (const Step& s : step.steps())
    chart.bars.push_back({s.name, static_cast<double>(s.weights + s.cached)});
  page.picture(
      {std::move(chart), "Weights and cache rows; the cache's share grows with the conversation.", false});

  const auto row_of = [&](const KvCache& one) { return one.view(layer).row(one.length() - 1); };
  const std::int64_t row_bytes = cache.view(layer).row_bytes;
  const bool same_row = std::memcmp(row_of(cache), row_of(session.cache()), row_bytes) == 0;
  const double off = largest_difference(step.stream(), {&*stream + c.hidden_size, step.stream().size()});
  page.check("These steps are all of it: they give the layer's output and the cached row, bit for bit.",
             off == 0 && same_row,
             fmt::format("Output off by {}; the row's {} bytes are {}.", tiny(off), row_bytes,
                         same_row ? "the same" : "others"));
  tell_v3(page);
  page.numbers["steps"] = numbers_of(step.steps());
  page.numbers["whole_step_microseconds"] = whole;
  page.code = {{"mla/model/transformer.cpp", "layer_forward"}, {"mla/attention/mla.cpp", "mla_forward"}};
  return page;
}

}  // namespace mla::app
