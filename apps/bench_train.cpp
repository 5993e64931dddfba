// mla bench train: steps of training, forward, backward and optimiser, on random tokens.
#include <fmt/format.h>

#include "apps/bench.h"
#include "apps/load.h"
#include "mla/core/parallel.h"
#include "mla/core/random.h"
#include "mla/train/trainer.h"

namespace mla::app {
namespace {

/// Two operations for each multiply-add of one token's forward pass and twice as many backward, as is usual:
/// products with weights that the token uses, and scores and values of the rows that it sees.
double operations_per_token(const ModelConfig& c, std::int64_t length) {
  const auto d = static_cast<double>(c.hidden_size), heads = static_cast<double>(c.num_heads);
  const auto query_width = heads * static_cast<double>(c.qk_head_dim());
  double attention =
      d * static_cast<double>(c.latent_width()) +
      static_cast<double>(c.kv_lora_rank) * heads * static_cast<double>(c.qk_nope_head_dim + c.v_head_dim) +
      heads * static_cast<double>(c.v_head_dim) * d;
  attention += c.q_lora_rank > 0 ? static_cast<double>(c.q_lora_rank) * (d + query_width) : d * query_width;
  attention +=
      heads * static_cast<double>(c.qk_head_dim() + c.v_head_dim) * static_cast<double>(length + 1) / 2;
  double all = static_cast<double>(c.vocab_size) * d;
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    const auto widths = static_cast<double>(
        c.layer_is_moe[layer] ? (c.moe.experts_per_token + c.moe.shared_experts) * c.moe.intermediate_size
                              : c.intermediate_size);
    all += attention + 3 * d * widths;
  }
  return 3 * 2 * all;
}

}  // namespace

void bench_train(const TrainBenchOptions& options) {
  if (options.bench.threads > 0) set_threads(options.bench.threads);
  const ModelConfig config = read_config(model_directory(options.model));
  Bench bench(options.bench, std::ssize(options.types) * std::ssize(options.attention));
  const std::int64_t tokens = options.batch * options.length;
  std::vector<std::int32_t> ids;
  RandomStream random(1);
  for (std::int64_t i = 0; i < 4 * tokens; ++i)
    ids.push_back(static_cast<std::int32_t>(random.below(config.vocab_size)));
  for (const std::string& type : options.types) {
    for (const std::string& attention : options.attention) {
      TrainerOptions o;
      o.length = options.length;
      o.batch = options.batch;
      o.slice = options.slice;
      o.schedule.total_steps = 1 << 30;
      o.computing = {form_named(attention, "--attention"), dtype_named(type, "--dtype")};
      Trainer trainer(config, ids, o);
      const double operations = static_cast<double>(tokens) * operations_per_token(config, options.length);
      bench.run({fmt::format("train {} {}, {} x {}", type, attention, options.batch, options.length),
                 "train",
                 o.computing.compute,
                 operations,
                 0,
                 false,
                 {{"heads", config.num_heads},
                  {"queries", options.length},
                  {"kv", options.length},
                  {"attention", attention}},
                 [&] { trainer.step(); },
                 static_cast<double>(tokens)});
    }
  }
  bench.finish();
}

}  // namespace mla::app
