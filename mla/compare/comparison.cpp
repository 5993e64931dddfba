#include "mla/compare/comparison.h"

#include <nlohmann/json.hpp>

#include "mla/core/clock.h"
#include "mla/core/directory_update.h"
#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/core/random.h"
#include "mla/model/config_fields.h"

namespace mla {
namespace {

constexpr const char* format_name = "mla-comparison-1";

nlohmann::ordered_json options_json(const ComparisonOptions& o) {
  const ComparisonSizes& s = o.sizes;
  return {{"format", format_name},
          {"vocab_size", s.vocab_size},
          {"hidden_size", s.hidden_size},
          {"num_layers", s.num_layers},
          {"num_heads", s.num_heads},
          {"head_dim", s.head_dim},
          {"grouped_heads", s.grouped_heads},
          {"kv_lora_rank", s.kv_lora_rank},
          {"qk_rope_head_dim", s.qk_rope_head_dim},
          {"intermediate_size", s.intermediate_size},
          {"max_context", s.max_context},
          {"steps", o.steps},
          {"batch", o.batch},
          {"length", o.length},
          {"learning_rate", o.learning_rate},
          {"held_back", o.held_back},
          {"seed", o.seed},
          {"dtype", name_of(o.compute)}};
}

ComparisonOptions options_from(const nlohmann::json& json, const std::string& source) {
  JsonFields f(json, source);
  f.word("format", {format_name});
  ComparisonOptions o;
  ComparisonSizes& s = o.sizes;
  s = {f.size("vocab_size"),   f.size("hidden_size"),      f.size("num_layers"),
       f.size("num_heads"),    f.size("head_dim"),         f.size("grouped_heads"),
       f.size("kv_lora_rank"), f.size("qk_rope_head_dim"), f.size("intermediate_size"),
       f.size("max_context")};
  o.steps = f.integer("steps", 1, std::int64_t{1} << 40);
  o.batch = f.size("batch");
  o.length = f.size("length");
  o.learning_rate = f.number_above("learning_rate", 0);
  o.held_back = f.number_above("held_back", 0);
  o.seed = f.whole_number("seed");
  o.compute = dtype_named(f.word("dtype", {"f32", "bf16"}), "dtype");
  return o;
}

RunOptions run_options(const ComparisonOptions& o, const Variant& variant) {
  RunOptions run = usual_run(o.steps, o.batch, o.learning_rate);
  run.config = variant.config;
  run.config_name = variant.name;
  run.held_back = o.held_back;
  run.trainer.length = o.length;
  run.trainer.adamw.weight_decay = 0.1;
  run.trainer.seed = variant.is_repeat ? o.seed + 1 : o.seed;
  run.trainer.computing.compute = o.compute;
  return run;
}

}  // namespace

Comparison::Comparison(std::filesystem::path directory, std::string text, ComparisonOptions options)
    : directory_(std::move(directory)),
      text_(std::move(text)),
      options_(options),
      variants_(comparison_variants(options_.sizes)) {}

std::filesystem::path Comparison::model_directory(const Variant& variant) const {
  return directory_ / "models" / variant.directory;
}

void Comparison::check_new(const std::filesystem::path& directory, const std::string& text) {
  require(!std::filesystem::exists(directory),
          "{}: is there already; --resume goes on with a comparison, another --out begins one",
          directory.string());
  require(!text.empty(), "text: found nothing to learn from");
}

Comparison Comparison::begin(const std::filesystem::path& directory, const std::string& text,
                             const ComparisonOptions& options) {
  check_new(directory, text);
  Comparison comparison(directory, text, options);
  const Variant& first = comparison.variants_.front();
  const TrainingRun plan =
      TrainingRun::plan(comparison.model_directory(first), text, run_options(options, first));
  DirectoryUpdate update(directory);
  write_text(update.partial() / "comparison.json", options_json(options).dump(2) + "\n");
  write_text(update.partial() / "tokenizer.json", plan.options().tokenizer);
  update.publish();
  return comparison;
}

Comparison Comparison::resume(const std::filesystem::path& directory, const std::string& text) {
  const std::filesystem::path path = directory / "comparison.json";
  require(std::filesystem::exists(path), "{}: no comparison to go on with: no comparison.json",
          directory.string());
  return {directory, text, options_from(parse_json(read_text(path), path.string()), path.string())};
}

TrainingRun Comparison::run(const Variant& variant) const {
  const std::filesystem::path directory = model_directory(variant);
  if (std::filesystem::exists(directory)) return TrainingRun::resume(directory, text_);
  std::filesystem::create_directories(directory.parent_path());
  RunOptions options = run_options(options_, variant);
  options.tokenizer = read_text(directory_ / "tokenizer.json");
  return TrainingRun::begin(directory, text_, options);
}

ComparisonResults Comparison::measure(const MeasureOptions& options,
                                      const std::function<void(const Variant&)>& before) const {
  ComparisonResults results;
  results.options = options_;
  results.text_bytes = std::ssize(text_);
  for (const Variant& variant : variants_) {
    if (before) before(variant);
    const TrainingRun trained = run(variant);
    require(trained.is_finished(), "{}: found {} steps of {}, expected a model that is trained to the end",
            model_directory(variant).string(), trained.steps(), options_.steps);
    results.held_back_bytes = trained.held_back_bytes();
    results.training_tokens = trained.training_tokens();
    const std::string log = (model_directory(variant) / "train_log.csv").string();
    results.models.push_back({variant, parse_train_log(read_text(log), log), trained.best(),
                              measure_model(model_directory(variant), trained.held_back(), options)});
  }
  return results;
}

double seconds_per_round(const ComparisonOptions& options) {
  RandomStream random(1);
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < 4 * options.batch * options.length; ++i)
    ids.push_back(static_cast<std::int32_t>(random.below(options.sizes.vocab_size)));
  double seconds = 0;
  for (const Variant& variant : comparison_variants(options.sizes)) {
    TrainerOptions how = run_options(options, variant).trainer;
    how.schedule.total_steps = 1000;  // none of which changes the time
    Trainer trainer(parse_config(variant.config, variant.name), ids, how);
    trainer.step();  // takes memory
    const double start = seconds_now();
    for (int i = 0; i < 3; ++i) trainer.step();
    seconds += (seconds_now() - start) / 3;
  }
  return seconds;
}

}  // namespace mla
