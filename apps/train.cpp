// mla train: a small DeepSeek-architecture model from a text of one's own.
#include <fmt/format.h>

#include "apps/commands.h"
#include "apps/load.h"
#include "apps/terminal.h"
#include "apps/training_line.h"
#include "mla/core/error.h"
#include "mla/core/mapped_file.h"
#include "mla/core/parallel.h"
#include "mla/train/presets.h"
#include "mla/train/run.h"

namespace mla::app {
namespace {

RunOptions run_options(const TrainOptions& o) {
  RunOptions run = usual_run(o.steps, o.batch, o.learning_rate);
  run.config = o.config.empty() ? preset_config(o.preset, {o.vocabulary}) : read_text(o.config);
  run.config_name = o.config.empty() ? "--preset " + o.preset : o.config;
  if (o.measure_every != 0) run.measure_every = o.measure_every;
  run.held_back = o.held_back;
  run.trainer.length = o.length;
  run.trainer.adamw.weight_decay = o.weight_decay;
  run.trainer.seed = o.seed;
  run.trainer.computing.compute = dtype_named(o.dtype, "--dtype");
  run.trainer.computing.form = o.attention == "absorbed" ? MlaForm::absorb : MlaForm::decompress;
  return run;
}

}  // namespace

void train(const TrainOptions& options) {
  was_interrupted();  // signals are watched from here on, before other threads exist
  if (options.threads > 0) set_threads(options.threads);
  const std::string text = read_text(options.text);
  TrainingRun run = options.resume ? TrainingRun::resume(options.out, text)
                                   : TrainingRun::begin(options.out, text, run_options(options));
  train_to_the_end(run, {});
  const TrainerOptions& t = run.options().trainer;
  say(
      fmt::format("{}: {} parameters, {} steps of {} tokens, {:.1f} times through the text\n"
                  "held back      {:.4f} bits per byte at step {}, whose weights these are\n"
                  "try it         mla generate --model {}\n",
                  options.out, run.trainer().model().parameters().count(), run.steps(), t.batch * t.length,
                  run.trainer().epochs(), run.best().bits_per_byte, run.best().step, options.out));
}

}  // namespace mla::app
