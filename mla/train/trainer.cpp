#include "mla/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mla/core/error.h"
#include "mla/core/random.h"
#include "mla/model/safetensors.h"
#include "mla/model/safetensors_writer.h"

namespace mla {
namespace {

constexpr const char* state_version = "mla-training-state-1";

bool is_matrix(const ParameterSpec& spec) {
  return spec.shape.size() == 2;
}
bool is_bias(const ParameterSpec& spec) {
  return spec.name.ends_with("e_score_correction_bias");
}

/// What AdamW trains: matrices with decay, norms without; biases are moved by load alone.
std::vector<TrainedRange> trained_ranges(Parameters& parameters) {
  std::vector<TrainedRange> ranges;
  for (std::size_t i = 0; i < parameters.specs().size(); ++i) {
    const ParameterSpec& spec = parameters.specs()[i];
    const MatrixView<float> value = parameters.at(i).value;
    if (!is_bias(spec))
      ranges.push_back({value.data - parameters.values().data(), value.rows * value.cols, is_matrix(spec)});
  }
  return ranges;
}

TokenDataOptions data_options(const TrainerOptions& o) {
  return {o.length, o.batch, 0.0, o.seed};
}

std::span<float> all_of(MatrixView<float> x) {
  return {x.data, static_cast<std::size_t>(x.rows * x.cols)};
}

}  // namespace

Trainer::Trainer(const ModelConfig& config, std::vector<std::int32_t> ids, const TrainerOptions& options)
    : options_(options),
      model_(config),
      data_(std::move(ids), data_options(options)),
      optimiser_(options.adamw, std::ssize(model_.parameters().values()),
                 trained_ranges(model_.parameters())) {
  require(options.slice >= 1 && options.batch % options.slice == 0,
          "trainer: found passes of {} sequences, expected a divisor of the batch of {}", options.slice,
          options.batch);
  draw_weights();
}

void Trainer::draw_weights() {
  constexpr double deviation = 0.02;
  Parameters& parameters = model_.parameters();
  for (std::size_t i = 0; i < parameters.specs().size(); ++i) {
    const ParameterSpec& spec = parameters.specs()[i];
    RandomStream random(options_.seed, i + 1);
    for (float& x : all_of(parameters.at(i).value))
      x = is_matrix(spec) ? static_cast<float>(deviation * random.normal()) : is_bias(spec) ? 0.0f : 1.0f;
  }
}

TrainingStep Trainer::step() {
  const std::int64_t done = steps();
  data_.read(done, batch_);
  model_.parameters().clear_gradients();
  const std::int64_t tokens = options_.batch * options_.length, pass = options_.slice * options_.length;
  double nats = 0;
  for (std::int64_t first = 0; first < tokens; first += pass) {
    const auto part = [&](const std::vector<std::int32_t>& ids) {
      return std::span(ids).subspan(first, pass);
    };
    nats += model_.loss_and_gradient(
        {{options_.slice, options_.length}, part(batch_.inputs), part(batch_.targets)},
        1.0 / static_cast<double>(tokens), options_.computing, memory_);
  }
  TrainingStep report{done + 1, nats / static_cast<double>(tokens), learning_rate(options_.schedule, done),
                      gradient_norm(model_.parameters().gradients())};
  require(
      std::isfinite(report.loss) && std::isfinite(report.gradient_norm),
      "training: step {}: found a loss of {} and a gradient of norm {}, expected numbers; a lower learning "
      "rate than {} may help",
      report.step, report.loss, report.gradient_norm, report.learning_rate);
  optimiser_.step(model_.parameters().values(), model_.parameters().gradients(), report.learning_rate,
                  clip_factor(report.gradient_norm, options_.clip));
  model_.move_biases(options_.bias_rate);
  return report;
}

double Trainer::surprise(std::span<const std::int32_t> ids, std::int64_t window) {
  require(window >= 2, "window: found {}, expected at least 2", window);
  const std::int64_t length = window - 1, predicted = std::ssize(ids) - 1;
  std::vector<std::int32_t> inputs, targets;
  double nats = 0;
  for (std::int64_t begin = 0; begin < predicted;) {
    const std::int64_t whole = std::min((predicted - begin) / length, options_.slice);
    const TokenBlock block = whole > 0 ? TokenBlock{whole, length} : TokenBlock{1, predicted - begin};
    const std::span<const std::int32_t> part = ids.subspan(begin, block.tokens() + 1);
    nats += model_.loss({block, part.first(block.tokens()), part.subspan(1)}, options_.computing, memory_);
    begin += block.tokens();
  }
  return nats;
}

// ---------------------------------------------------------------- files

void Trainer::write_weights(const std::filesystem::path& path, DType type) {
  std::vector<TensorToWrite> tensors;
  for (std::size_t i = 0; i < model_.parameters().specs().size(); ++i) {
    const ParameterSpec& spec = model_.parameters().specs()[i];
    const bool rounds = type == DType::bf16 && !is_bias(spec);
    tensors.push_back({spec.name, spec.shape, std::span<const float>(all_of(model_.parameters().at(i).value)),
                       rounds ? StoredType::bf16 : StoredType::f32});
  }
  write_safetensors(path, tensors);
}

void Trainer::save(const std::filesystem::path& path, const std::vector<std::int64_t>& notes) {
  const auto size = static_cast<std::int64_t>(model_.parameters().values().size());
  const std::vector<std::int64_t> steps_done{steps()};
  const TensorToWrite tensors[] = {
      {"values", {size}, std::span<const float>(model_.parameters().values())},
      {"first_moments", {size}, std::span<const float>(optimiser_.first_moments())},
      {"second_moments", {size}, std::span<const float>(optimiser_.second_moments())},
      {"steps", {1}, std::span<const std::int64_t>(steps_done), StoredType::i64},
      {"notes", {std::ssize(notes)}, std::span<const std::int64_t>(notes), StoredType::i64},
  };
  write_safetensors(path, tensors, {{"format", state_version}});
}

std::vector<std::int64_t> Trainer::restore(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const auto read = [&](const char* name, StoredType type, std::int64_t size) {
    const StoredTensor* stored = file.find(name);
    require(stored && stored->type == type && (size < 0 || stored->elements() == size),
            "{}: tensor '{}': found {}, expected {} values of this model's training state", path.string(),
            name, stored ? shape_text(stored->shape) : "none", size);
    return stored->data;
  };
  const auto size = static_cast<std::int64_t>(model_.parameters().values().size());
  const auto copy = [&](const char* name, std::span<float> to) {
    const std::span<const std::byte> bytes = read(name, StoredType::f32, size);
    std::memcpy(to.data(), bytes.data(), bytes.size());
  };
  const std::span<const std::byte> noted = read("notes", StoredType::i64, -1);
  std::vector<std::int64_t> notes(noted.size() / sizeof(std::int64_t));
  std::memcpy(notes.data(), noted.data(), noted.size());
  std::int64_t steps_done = 0;
  std::memcpy(&steps_done, read("steps", StoredType::i64, 1).data(), sizeof steps_done);
  require(steps_done >= 0, "{}: tensor 'steps': found {}, expected at least 0", path.string(), steps_done);
  copy("values", model_.parameters().values());
  copy("first_moments", optimiser_.first_moments());
  copy("second_moments", optimiser_.second_moments());
  optimiser_.resume_at(steps_done);
  return notes;
}

}  // namespace mla
