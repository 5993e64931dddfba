#include "apps/training_commands.h"

namespace mla::app {
namespace {

const CLI::Range counts(std::int64_t{1}, std::int64_t{1} << 30);

/// What every command that trains takes.
template <class Options>
void add_common_options(CLI::App* command, Options& o) {
  command->add_option("--dtype", o.dtype, "Type of the arithmetic in matrix products")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  command->add_option("--seed", o.seed, "Of the first weights and the order of the text")
      ->capture_default_str();
  command->add_option("--threads", o.threads, "Threads")
      ->check(CLI::Range(1, 1024))
      ->default_str("one per processor");
  command->add_flag("--resume", o.resume, "Go on with the run in --out; its own options hold");
}

void add_train(CLI::App& app, TrainOptions& o, std::function<void()>& run) {
  const CLI::Range shares(1e-6, 0.9), rates(1e-9, 1.0);
  CLI::App* command = app.add_subcommand("train", "Train a small model from a text");
  command->add_option("--text", o.text, "Text file to learn from")->required();
  command->add_option("--out", o.out, "Directory to make: the model, and what going on needs")->required();
  CLI::Option* preset = command->add_option("--preset", o.preset, "Size of the model")
                            ->check(CLI::IsMember({"tiny", "small"}))
                            ->capture_default_str();
  command->add_option("--config", o.config, "A config.json that says the shape instead")->excludes(preset);
  command->add_option("--vocabulary", o.vocabulary, "Tokens of a preset's vocabulary")
      ->check(CLI::Range(std::int64_t{258}, std::int64_t{1} << 18))
      ->default_str("1024 for tiny, 2048 for small");
  command->add_option("--steps", o.steps, "Steps to train for")->check(counts)->capture_default_str();
  command->add_option("--batch", o.batch, "Sequences of a step")->check(counts)->capture_default_str();
  command->add_option("--length", o.length, "Tokens of a sequence")
      ->check(CLI::Range(std::int64_t{2}, std::int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--learning-rate", o.learning_rate, "At its peak")->check(rates)->capture_default_str();
  command->add_option("--weight-decay", o.weight_decay, "Of matrices")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  command->add_option("--held-back", o.held_back, "Share of the text, at its end, to measure on")
      ->check(shares)
      ->capture_default_str();
  command->add_option("--measure-every", o.measure_every, "Steps between measurements")
      ->check(counts)
      ->default_str("a twentieth of all");
  command->add_option("--attention", o.attention, "Form of latent attention")
      ->check(CLI::IsMember({"explicit", "absorbed"}))
      ->capture_default_str();
  add_common_options(command, o);
  command->callback([&] { run = [&o] { train(o); }; });
}

void add_compare(CLI::App& app, CompareOptions& o, std::function<void()>& run) {
  CLI::App* command = app.add_subcommand(
      "compare", "Train MHA, GQA, MQA and MLA alike, and say what the chapter's claims are worth");
  command->add_option("--text", o.text, "Text file to learn from")->required();
  command->add_option("--out", o.out, "Directory to make: report.html, results.json and the models")
      ->required();
  CLI::Option* budget = command->add_option("--budget", o.budget, "Minutes for all models together, about")
                            ->check(CLI::Range(0.01, 1e6))
                            ->capture_default_str();
  command->add_option("--tokens", o.tokens, "Tokens to train each model on instead")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 40))
      ->excludes(budget);
  add_common_options(command, o);
  command->callback([&] { run = [&o] { compare(o); }; });
}

}  // namespace

void add_training_commands(CLI::App& app, TrainingCommands& options, std::function<void()>& run) {
  add_train(app, options.train, run);
  add_compare(app, options.compare, run);
}

}  // namespace mla::app
