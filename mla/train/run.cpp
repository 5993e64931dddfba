#include "mla/train/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <numbers>

#include "mla/core/clock.h"
#include "mla/core/directory_update.h"
#include "mla/core/error.h"
#include "mla/core/file_lock.h"
#include "mla/core/json.h"
#include "mla/core/mapped_file.h"
#include "mla/model/config_fields.h"
#include "mla/model/tokenizer.h"
#include "mla/train/bpe_trainer.h"

namespace mla {
namespace {

constexpr const char* format_name = "mla-training-1";
constexpr const char* state_file = "training_state.safetensors";
constexpr const char* log_file = "train_log.csv";
constexpr std::int64_t most_steps = std::int64_t{1} << 40;

/// FNV-1a: tells one text from another, no more.
std::uint64_t checksum_of(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

/// Where the held-back part begins: behind the line that the share falls into, if there is one.
std::size_t training_bytes(const std::string& text, double held_back) {
  const auto wanted = static_cast<std::size_t>(static_cast<double>(text.size()) * (1 - held_back));
  const std::size_t line = text.find('\n', wanted);
  if (line != std::string::npos && line + 1 < text.size()) return line + 1;
  std::size_t cut = wanted;
  while (cut < text.size() && (static_cast<unsigned char>(text[cut]) & 0xC0u) == 0x80u) ++cut;
  return cut;
}

/// The tokenizer.json of the part of `text` that is not held back.
std::string learnt_tokenizer(const std::string& text, double held_back, std::int64_t vocab_size) {
  const BpeOptions bpe{vocab_size, {"<|begin|>", "<|end|>"}};
  return train_bpe(std::string_view(text).substr(0, training_bytes(text, held_back)), bpe).tokenizer_json;
}

nlohmann::ordered_json options_json(const RunOptions& o) {
  const TrainerOptions& t = o.trainer;
  return {{"steps", o.steps},
          {"batch", t.batch},
          {"slice", t.slice},
          {"length", t.length},
          {"learning_rate", t.schedule.peak},
          {"last_learning_rate", t.schedule.floor},
          {"warmup_steps", t.schedule.warmup_steps},
          {"beta1", t.adamw.beta1},
          {"beta2", t.adamw.beta2},
          {"epsilon", t.adamw.epsilon},
          {"weight_decay", t.adamw.weight_decay},
          {"clip", t.clip},
          {"bias_rate", t.bias_rate},
          {"seed", t.seed},
          {"dtype", name_of(t.computing.compute)},
          {"attention", name_of(t.computing.form)},
          {"held_back", o.held_back},
          {"measure_every", o.measure_every}};
}

RunOptions options_from(const nlohmann::json& json, const std::string& source) {
  JsonFields f(json, source, "options.");
  RunOptions o;
  o.steps = f.integer("steps", 1, most_steps);
  o.trainer.batch = f.integer("batch", 1, max_size);
  o.trainer.slice = f.integer("slice", 1, max_size);
  o.trainer.length = f.integer("length", 1, max_size);
  o.trainer.schedule = {f.number_above("learning_rate", 0), f.number_from("last_learning_rate", 0, 0),
                        f.integer("warmup_steps", 0, most_steps), o.steps};
  o.trainer.adamw = {f.number_from("beta1", 0, 0), f.number_from("beta2", 0, 0), f.number_above("epsilon", 0),
                     f.number_from("weight_decay", 0, 0)};
  o.trainer.clip = f.number_above("clip", 0);
  o.trainer.bias_rate = f.number_from("bias_rate", 0, 0);
  o.trainer.seed = f.whole_number("seed");
  o.trainer.computing.compute = dtype_named(f.word("dtype", {"f32", "bf16"}), "dtype");
  o.trainer.computing.form = form_named(f.word("attention", {"explicit", "absorbed"}), "attention");
  o.held_back = f.number_above("held_back", 0);
  o.measure_every = f.integer("measure_every", 1, most_steps);
  return o;
}

std::string hex(std::uint64_t x) {
  return fmt::format("{:016x}", x);
}

}  // namespace

RunOptions usual_run(std::int64_t steps, std::int64_t batch, double learning_rate) {
  require(steps >= 1 && steps <= most_steps, "steps: found {}, expected 1 to {}", steps, most_steps);
  require(batch >= 1 && batch <= max_size, "batch: found {}, expected 1 to {}", batch, max_size);
  RunOptions run;
  run.steps = steps;
  run.measure_every = std::max<std::int64_t>(1, steps / 20);
  run.trainer.batch = batch;
  run.trainer.slice = batch % 4 == 0 ? 4 : 1;
  run.trainer.schedule = usual_schedule(learning_rate, steps);
  return run;
}

TrainingRun::TrainingRun(std::filesystem::path directory, RunOptions options, const std::string& text)
    : directory_(std::move(directory)),
      options_(std::move(options)),
      text_bytes_(std::ssize(text)),
      checksum_(checksum_of(text)) {
  const Tokenizer tokenizer =
      Tokenizer::parse(options_.tokenizer, "", (directory_ / "tokenizer.json").string());
  const ModelConfig config = parse_config(options_.config, options_.config_name);
  require(tokenizer.vocab_size() <= config.vocab_size,
          "{}: vocab_size: found {}, expected at least the tokenizer's {}", options_.config_name,
          config.vocab_size, tokenizer.vocab_size());
  require(options_.trainer.length <= config.max_context,
          "{}: max_position_embeddings: found {}, expected at least the {} tokens of a sequence",
          options_.config_name, config.max_context, options_.trainer.length);
  const std::size_t cut = training_bytes(text, options_.held_back);
  std::vector<std::int32_t> ids = tokenizer.encode(std::string_view(text).substr(0, cut));
  held_back_ = tokenizer.encode(std::string_view(text).substr(cut));
  require(held_back_.size() >= 2,
          "text: found {} tokens in the {} bytes that are held back, expected at least 2", held_back_.size(),
          text.size() - cut);
  training_bytes_ = static_cast<std::int64_t>(cut);
  training_tokens_ = std::ssize(ids);
  held_back_bytes_ = std::ssize(text) - static_cast<std::int64_t>(cut);
  options_.trainer.schedule.total_steps = options_.steps;
  trainer_ = std::make_unique<Trainer>(config, std::move(ids), options_.trainer);
}

TrainingRun TrainingRun::plan(const std::filesystem::path& directory, const std::string& text,
                              const RunOptions& options) {
  require(!std::filesystem::exists(directory),
          "{}: is there already; --resume goes on with a run, another --out begins one", directory.string());
  require(!text.empty(), "text: found nothing to learn from");
  require(options.held_back > 0 && options.held_back < 1,
          "held back: found a share of {}, expected one between 0 and 1", options.held_back);
  require(options.measure_every >= 1 && options.measure_every <= most_steps,
          "measure_every: found {}, expected 1 to {}", options.measure_every, most_steps);
  const TrainingOptions& computing = options.trainer.computing;
  require(computing.compute == DType::f32 || computing.compute == DType::bf16,
          "dtype: found {}, expected f32 or bf16", name_of(computing.compute));
  require(computing.form != MlaForm::automatic, "attention: found {}, expected explicit or absorbed",
          name_of(computing.form));
  learning_rate(options.trainer.schedule, 0);  // throws for a schedule that is none
  const ModelConfig config = parse_config(options.config, options.config_name);
  require(config.attention == AttentionKind::latent || computing.form == MlaForm::decompress,
          "{}: model_type: found {}, expected latent attention beside the absorbed form: no other has forms",
          options.config_name, config.model_type);
  RunOptions planned = options;
  if (planned.tokenizer.empty())
    planned.tokenizer = learnt_tokenizer(text, options.held_back, config.vocab_size);
  return {directory, std::move(planned), text};
}

TrainingRun TrainingRun::begin(const std::filesystem::path& directory, const std::string& text,
                               const RunOptions& options) {
  TrainingRun run = plan(directory, text, options);
  DirectoryUpdate update(directory);
  write_text(update.partial() / "config.json", options.config);
  write_text(update.partial() / "tokenizer.json", run.options_.tokenizer);
  run.directory_ = update.partial();
  run.write_description();
  update.publish();
  run.directory_ = directory;
  run.begin_log();
  return run;
}

TrainingRun TrainingRun::resume(const std::filesystem::path& directory, const std::string& text) {
  const std::filesystem::path path = directory / "training.json";
  require(std::filesystem::exists(path), "{}: no run of training to go on with: no training.json",
          directory.string());
  const nlohmann::json json = parse_json(read_text(path), path.string());
  JsonFields fields(json, path.string());
  fields.word("format", {format_name});
  RunOptions options = options_from(fields.need("options", "an object"), path.string());
  options.config_name = (directory / "config.json").string();
  options.config = read_text(options.config_name);
  const std::string checksum = JsonFields(fields.need("text", "an object"), path.string(), "text.")
                                   .need("checksum", "a string")
                                   .dump();
  require(checksum == nlohmann::json(hex(checksum_of(text))).dump(),
          "{}: text.checksum: found {}, expected that of the text given, {}: another text", path.string(),
          checksum, hex(checksum_of(text)));
  options.tokenizer = read_text(directory / "tokenizer.json");
  TrainingRun run(directory, std::move(options), text);
  if (std::filesystem::exists(directory / state_file)) {
    const std::vector<std::int64_t> notes = run.trainer_->restore(directory / state_file);
    require(notes.size() == 2, "{}: tensor 'notes': found {} values, expected 2",
            (directory / state_file).string(), notes.size());
    run.best_ = {notes[0], std::bit_cast<double>(notes[1]), false};
  }
  run.begin_log();
  // A kill may have left what is written after the state behind it.
  run.write_description();
  if (run.steps() > 0) run.draw_losses();
  return run;
}

void TrainingRun::begin_log() {
  // config.json stays the same file from begin on, so its lock is the directory's.
  lock_ = std::make_unique<FileLock>(directory_ / "config.json", "another process trains here");
  log_ = std::make_unique<TrainLog>(directory_ / log_file, steps());
  first_step_ = steps();
  started_ = seconds_now();
}

RunStep TrainingRun::step() {
  RunStep done{trainer_->step(), 0, {}};
  std::optional<double> held_back;
  if (steps() % options_.measure_every == 0 || is_finished()) held_back = held_back_bits_per_byte();
  const std::int64_t tokens = options_.trainer.batch * options_.trainer.length;
  done.tokens_per_second = static_cast<double>((steps() - first_step_) * tokens) / (seconds_now() - started_);
  // The line before the state: a kill between them leaves a line too many, which resume() cuts off.
  log_->append({done.step.step, steps() * tokens, done.step.loss, done.step.learning_rate,
                done.step.gradient_norm, done.tokens_per_second, held_back});
  if (held_back) {
    done.measure = keep(*held_back);
    draw_losses();
  }
  return done;
}

double TrainingRun::held_back_bits_per_byte() {
  const double nats = trainer_->surprise(held_back_, options_.trainer.length);
  return nats / std::numbers::ln2 / static_cast<double>(held_back_bytes_);
}

/// Writes the weights, if they are the best so far, and the state.
RunMeasure TrainingRun::keep(double bits_per_byte) {
  RunMeasure measure{steps(), bits_per_byte, best_.step == 0 || bits_per_byte < best_.bits_per_byte};
  if (measure.is_best) {
    best_ = measure;
    trainer_->write_weights(directory_ / "model.safetensors", DType::bf16);
  }
  save();
  return measure;
}

/// loss.svg.
void TrainingRun::draw_losses() const {
  const std::string log = (directory_ / log_file).string();
  write_text(directory_ / "loss.svg",
             loss_curve_svg(parse_train_log(read_text(log), log),
                            static_cast<double>(training_bytes_) / static_cast<double>(training_tokens_)));
}

void TrainingRun::save() {
  trainer_->save(directory_ / state_file, {best_.step, std::bit_cast<std::int64_t>(best_.bits_per_byte)});
  write_description();
}

/// training.json.
void TrainingRun::write_description() const {
  nlohmann::ordered_json json = {{"format", format_name},
                                 {"options", options_json(options_)},
                                 {"text",
                                  {{"bytes", text_bytes_},
                                   {"checksum", hex(checksum_)},
                                   {"training_tokens", training_tokens_},
                                   {"held_back_bytes", held_back_bytes_}}},
                                 {"steps_done", steps()}};
  if (best_.step > 0) {
    json["best"] = {{"step", best_.step},
                    {"tokens_trained", best_.step * options_.trainer.batch * options_.trainer.length},
                    {"bits_per_byte", best_.bits_per_byte},
                    {"window", options_.trainer.length}};
  }
  write_text(directory_ / "training.json", json.dump(2) + "\n");
}

}  // namespace mla
