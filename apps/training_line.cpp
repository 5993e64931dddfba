#include "apps/training_line.h"

#include <fmt/format.h>
#include <unistd.h>

#include "apps/terminal.h"
#include "mla/core/error.h"

namespace mla::app {
namespace {

/// "2 h 5 min", "12 min", "40 s".
std::string duration(double seconds) {
  const auto s = static_cast<std::int64_t>(seconds);
  if (s >= 3600) return fmt::format("{} h {} min", s / 3600, s / 60 % 60);
  return s >= 60 ? fmt::format("{} min", s / 60) : fmt::format("{} s", s);
}

/// One line on a terminal's standard error that rewrites itself; nothing in a pipe.
class TrainingLine {
 public:
  explicit TrainingLine(std::string name) : name_(std::move(name)) {}
  ~TrainingLine() { clear(); }
  void show(const TrainingRun& run, const RunStep& done) {
    if (!is_terminal_) return;
    const RunOptions& o = run.options();
    const std::string measured =
        run.best().step > 0 ? fmt::format("held back {:.3f} bits per byte, ", run.best().bits_per_byte) : "";
    const double left = static_cast<double>((o.steps - run.steps()) * o.trainer.batch * o.trainer.length) /
                        done.tokens_per_second;
    fmt::print(stderr, "\r{}step {} of {}: loss {:.3f}, {}{:.0f} tokens/s, {} left\033[K", name_, run.steps(),
               o.steps, done.step.loss, measured, done.tokens_per_second, duration(left));
    std::fflush(stderr);
    is_shown_ = true;
  }
  void clear() {
    if (is_shown_) std::fputs("\r\033[K", stderr);
    is_shown_ = false;
  }

 private:
  std::string name_;
  bool is_terminal_ = ::isatty(STDERR_FILENO) == 1, is_shown_ = false;
};

}  // namespace

void train_to_the_end(TrainingRun& run, const std::string& name) {
  TrainingLine line(name);
  while (!run.is_finished()) {
    const RunStep done = run.step();
    line.show(run, done);
    if (!was_interrupted() || run.is_finished()) continue;
    run.save();
    line.clear();
    fail("interrupted at step {}; the same command with --resume goes on", run.steps());
  }
}

}  // namespace mla::app
