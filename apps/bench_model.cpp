// mla bench model: prefill and decode of a model of random weights beside the limits of the CPU.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "apps/bench.h"
#include "apps/load.h"
#include "apps/random_model.h"
#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/model/census.h"

namespace mla::app {
namespace {

constexpr std::int64_t page_rows = 64;

/// New tokens behind cached ones, the logits of the last.
struct Step {
  std::int64_t tokens, context;
  std::int64_t rows() const { return context + tokens; }
};

/// Keeps the first layers. If none of them has experts, though the model has layers with experts, the last
/// one gets them.
void keep_layers(const ModelBenchOptions& o, ModelConfig& c) {
  require(o.layers <= c.num_layers, "bench model: found --layers {}, expected at most {}, those of {}",
          o.layers, c.num_layers, o.shape);
  const auto has_experts = [&] { return std::ranges::count(c.layer_is_moe, true) > 0; };
  const bool mixes = has_experts();
  c.num_layers = o.layers;
  c.layer_is_moe.resize(static_cast<std::size_t>(o.layers));
  if (mixes && !has_experts()) c.layer_is_moe.back() = true;
}

/// Keeps the first experts of each group.
void keep_experts(const ModelBenchOptions& o, ModelConfig& c) {
  MoeConfig& moe = c.moe;
  if (o.experts == 0) return;
  const std::int64_t least = (moe.experts_per_token + moe.groups_kept - 1) / moe.groups_kept * moe.num_groups;
  require(o.experts >= least && o.experts <= moe.num_experts && o.experts % moe.num_groups == 0,
          "bench model: found --experts {}, expected {} to {}, a multiple of the {} groups of {}", o.experts,
          least, moe.num_experts, moe.num_groups, o.shape);
  moe.num_experts = o.experts;
}

ModelConfig config_of(const ModelBenchOptions& o) {
  ModelConfig c = config_of_shape(o.shape);
  keep_layers(o, c);
  keep_experts(o, c);
  const std::int64_t longest = std::max(o.prompt, *std::ranges::max_element(o.contexts) + 1);
  require(longest <= c.max_context, "bench model: {} tokens: expected at most {}, the context limit of {}",
          longest, c.max_context, o.shape);
  return c;
}

std::int64_t moe_layers(const ModelConfig& c) {
  return std::ranges::count(c.layer_is_moe, true);
}

/// Multiply-adds of a step's attention, in whichever form does fewer. What W_UK and W_UV do to the new tokens
/// counts as a product with weights.
double attention_work(const ModelConfig& c, const Step& step) {
  const auto m = static_cast<double>(step.tokens), past = static_cast<double>(step.context);
  const double pairs = m * past + m * (m + 1) / 2;
  if (c.attention == AttentionKind::heads)
    return pairs * static_cast<double>(c.num_layers * c.num_heads * 2 * c.head_dim);
  const auto d_c = static_cast<double>(c.kv_lora_rank);
  const double decompress = past * d_c * static_cast<double>(c.qk_nope_head_dim + c.v_head_dim) +
                            pairs * static_cast<double>(c.qk_head_dim() + c.v_head_dim);
  const double absorb = pairs * static_cast<double>(2 * c.kv_lora_rank + c.qk_rope_head_dim);
  return static_cast<double>(c.num_layers * c.num_heads) * std::min(decompress, absorb);
}

/// Weights that every token of the layers is multiplied with: all but the embedding, the head and the experts
/// that it does not choose.
double weights_per_token(const ModelConfig& c) {
  const std::int64_t tables = (c.tied_head ? 1 : 2) * c.vocab_size * c.hidden_size;
  return static_cast<double>(count_parameters(c).active - tables);
}

/// Two for each multiply-add that the step asks for.
double operations(const ModelConfig& c, const Step& step) {
  const auto head = static_cast<double>(c.vocab_size * c.hidden_size);
  return 2 * (static_cast<double>(step.tokens) * weights_per_token(c) + head + attention_work(c, step));
}

/// Bytes that the step must read once: weights (of the experts, as many as `tokens` choices at random hit),
/// the head, the embeddings of its tokens, its rows.
std::int64_t bytes(const ModelConfig& c, const Step& step, DType type, const RowLayout& layout) {
  const auto experts = static_cast<double>(c.moe.num_experts),
             chosen = static_cast<double>(c.moe.experts_per_token);
  const double touched =
      experts > 0 ? experts * (1 - std::pow(1 - chosen / experts, static_cast<double>(step.tokens))) : 0;
  const auto expert = static_cast<double>(3 * c.hidden_size * c.moe.intermediate_size);
  const double values = weights_per_token(c) +
                        static_cast<double>(moe_layers(c)) * (touched - chosen) * expert +
                        static_cast<double>((c.vocab_size + step.tokens) * c.hidden_size);
  return static_cast<std::int64_t>(values) * size_of(type) + c.num_layers * step.rows() * layout.bytes();
}

/// The model and what its steps share.
class ModelBench {
 public:
  ModelBench(const ModelBenchOptions& o, const ModelConfig& c)
      : options_(o),
        form_(form_named(o.attention, "--attention")),
        type_(o.types.compute()),
        layout_(row_layout(c, o.types.cached())) {
    require(c.attention == AttentionKind::latent || form_ == MlaForm::automatic,
            "bench model: found --attention {}, expected auto: {} has no latents that could have forms",
            o.attention, o.shape);
    const std::int64_t rows = std::max(o.prompt, *std::ranges::max_element(o.contexts) + 1);
    check_bench_fits(random_model_bytes(c, type_) + c.num_layers * (rows + page_rows) * layout_.bytes());
  }

  void run(Bench& bench, const Transformer& model, const Step& step) {
    const ModelConfig& c = model.config();
    KvCache cache(model.make_pool(layout_.type(), page_rows, std::int64_t{1} << 40));
    fill(cache, step.context);
    const Rotary rotary(c.rope, step.rows());
    TransformerScratch scratch;
    Buffer<float> logits(c.vocab_size);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(step.tokens));
    const auto call = [&] {
      for (std::int32_t& id : ids) id = next_id(c.vocab_size);
      const MatrixView<float> hidden = model.forward(ids, {form_, type_}, rotary, cache, scratch);
      model.logits(hidden.block(hidden.rows - 1, 1), type_, {logits.data(), 1, c.vocab_size});
      cache.truncate(step.context);
    };
    const bool cold = random_model_bytes(c, type_) > bytes_beyond_caches();
    const std::string name = fmt::format("{} {}, {} layers, {} {}", op_of(step), options_.shape, c.num_layers,
                                         op_of(step) == "decode" ? "context" : "prompt",
                                         op_of(step) == "decode" ? step.context : step.tokens);
    bench.run({name, op_of(step), type_, operations(c, step), bytes(c, step, type_, layout_), cold,
               fields(model, step), call, static_cast<double>(step.tokens)});
  }

 private:
  static std::string op_of(const Step& step) { return step.context > 0 ? "decode" : "prefill"; }

  nlohmann::ordered_json fields(const Transformer& model, const Step& step) const {
    const ModelConfig& c = model.config();
    const std::string attention =
        c.attention == AttentionKind::latent
            ? name_of(model.form_for({form_, type_}, layout_.type(), step.tokens, step.rows()))
            : "heads";
    return {{"heads", c.num_heads},
            {"queries", step.tokens},
            {"kv", step.rows()},
            {"shape", options_.shape},
            {"layers", c.num_layers},
            {"moe_layers", moe_layers(c)},
            {"experts", c.moe.num_experts},
            {"cache_rows", mla::name_of(layout_.type())},
            {"attention", attention}};
  }

  void fill(KvCache& cache, std::int64_t rows) {
    RandomValues values(layout_.values());
    cache.extend(rows);
    for (std::int64_t layer = 0; layer < cache.pool().num_layers(); ++layer) {
      for (std::int64_t row = 0; row < rows; ++row) cache.write(layer, row, values.next(layout_.values()));
    }
  }

  std::int32_t next_id(std::int64_t vocab) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::int32_t>((state_ >> 33) % static_cast<std::uint64_t>(vocab));
  }

  const ModelBenchOptions& options_;
  MlaForm form_;
  DType type_;
  RowLayout layout_;
  std::uint64_t state_ = 1;
};

}  // namespace

void bench_model(const ModelBenchOptions& options) {
  if (options.bench.threads > 0) set_threads(options.bench.threads);
  const ModelConfig config = config_of(options);
  ModelBench steps(options, config);
  const Transformer model = random_model(config, options.types.compute());
  Bench bench(options.bench, 1 + static_cast<std::int64_t>(options.contexts.size()));
  steps.run(bench, model, {options.prompt, 0});
  for (const std::int64_t context : options.contexts) steps.run(bench, model, {1, context});
  bench.finish();
}

}  // namespace mla::app
