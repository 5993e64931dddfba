// Runs of training from Python, step by step.
#include <fmt/format.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <atomic>
#include <optional>
#include <utility>

#include "mla/core/error.h"
#include "mla/train/presets.h"
#include "mla/train/run.h"
#include "python/bindings.h"
#include "python/model.h"

namespace mla::python {
namespace {

namespace nb = nanobind;
namespace fs = std::filesystem;
using namespace nb::literals;

/// A run, and whether a thread is at it.
class Training {
 public:
  explicit Training(TrainingRun run) : run_(std::move(run)) { note(); }

  /// (step, loss, learning_rate, gradient_norm, tokens_per_second, bits per byte or None, is_best)
  nb::tuple step() {
    const InUse using_it(in_use_, name);
    require(!run_.is_finished(), "training: found all of its {} steps done", run_.steps());
    RunStep done;
    {
      nb::gil_scoped_release released;
      done = run_.step();
    }
    note();
    nb::object measured = nb::none();
    if (done.measure) measured = nb::cast(done.measure->bits_per_byte);
    const TrainingStep& s = done.step;
    return nb::make_tuple(s.step, s.loss, s.learning_rate, s.gradient_norm, done.tokens_per_second, measured,
                          done.measure && done.measure->is_best);
  }
  void save() {
    const InUse using_it(in_use_, name);
    nb::gil_scoped_release released;
    run_.save();
  }
  // As the last step left them: another thread may be at the next.
  std::int64_t steps() const { return steps_; }
  std::int64_t total_steps() const { return run_.options().steps; }
  std::int64_t parameters() { return run_.trainer().model().parameters().count(); }
  /// (step, bits per byte), or None before the first measurement.
  std::optional<std::pair<std::int64_t, double>> best() const { return best_; }

 private:
  void note() {
    steps_ = run_.steps();
    if (run_.best().step > 0) best_ = {run_.best().step, run_.best().bits_per_byte};
  }

  static constexpr const char* name = "trainer";
  TrainingRun run_;
  std::int64_t steps_ = 0;
  std::optional<std::pair<std::int64_t, double>> best_;
  std::atomic<bool> in_use_ = false;
};

/// An option of a run. Throws TypeError naming it for a value of another type.
template <class T>
T option(const nb::dict& given, const char* name, const char* expected) {
  T value{};
  const nb::object found = given[name];
  if (!nb::try_cast(found, value))
    throw nb::type_error(
        fmt::format("{}: found {}, expected {}", name, nb::repr(found).c_str(), expected).c_str());
  return value;
}

/// A run's options as mla/trainer.py names them; a config that is no preset's name is a config.json's text.
RunOptions run_options(const nb::dict& given) {
  const auto integer = [&](const char* name) { return option<std::int64_t>(given, name, "an integer"); };
  const auto number = [&](const char* name) { return option<double>(given, name, "a number"); };
  const auto word = [&](const char* name) { return option<std::string>(given, name, "a str"); };
  RunOptions o = usual_run(integer("steps"), integer("batch"), number("learning_rate"));
  const std::string preset = word("preset");
  if (preset.empty()) {
    o.config = word("config");
    o.config_name = word("config_name");
  } else {
    o.config = preset_config(preset, {integer("vocabulary")});
    o.config_name = preset;
  }
  if (integer("measure_every") != 0) o.measure_every = integer("measure_every");
  o.held_back = number("held_back");
  o.trainer.length = integer("length");
  o.trainer.adamw.weight_decay = number("weight_decay");
  o.trainer.seed = option<std::uint64_t>(given, "seed", "an integer from 0 to 2^64 - 1");
  o.trainer.computing.compute = dtype_named(word("dtype"), "dtype");
  o.trainer.computing.form = form_named(word("attention"), "attention");
  return o;
}

}  // namespace

void bind_training(nb::module_& m) {
  nb::class_<Training>(m, "Training")
      .def_static(
          "begin",
          [](const fs::path& directory, const std::string& text, const nb::dict& options) {
            const RunOptions run = run_options(options);
            nb::gil_scoped_release released;
            return std::make_unique<Training>(TrainingRun::begin(directory, text, run));
          },
          "directory"_a, "text"_a, "options"_a)
      .def_static(
          "resume",
          [](const fs::path& directory, const std::string& text) {
            return std::make_unique<Training>(TrainingRun::resume(directory, text));
          },
          "directory"_a, "text"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("step", &Training::step)
      .def("save", &Training::save)
      .def_prop_ro("steps", &Training::steps)
      .def_prop_ro("total_steps", &Training::total_steps)
      .def_prop_ro("parameters", &Training::parameters)
      .def_prop_ro("best", &Training::best);
}

}  // namespace mla::python
