#include "apps/terminal.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <thread>
#include <utility>

#include "mla/core/clock.h"
#include "mla/core/error.h"

namespace mla::app {
namespace {

std::atomic<bool> interrupted{false};

/// Waits for the signals in a thread of its own, with them blocked in all others: no handler ever runs on a
/// thread that computes.
void watch_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // threads made from here on inherit it
  std::thread([signals] {
    int signal = 0;
    sigwait(&signals, &signal);
    interrupted = true;
    sigwait(&signals, &signal);  // the second one ends the program as usual
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    std::raise(signal);
  }).detach();
}

}  // namespace

Progress::Progress(std::string what, std::int64_t total)
    : what_(std::move(what)),
      total_(total),
      started_(seconds_now()),
      is_terminal_(::isatty(STDERR_FILENO) == 1) {}

void Progress::show(std::int64_t done) {
  const double time = seconds_now();
  if (!is_terminal_ || time - started_ < 0.5 || time - shown_ < 0.1) return;
  shown_ = time;
  const double share = total_ > 0 ? static_cast<double>(done) / static_cast<double>(total_) : 1.0;
  const double left = share > 0 ? (time - started_) * (1 - share) / share : 0;
  fmt::print(stderr, "\r{}: {:3.0f} %, {:.0f} s left \033[K", what_, 100 * share, left);
  std::fflush(stderr);
}

Progress::~Progress() {
  if (shown_ > 0) std::fputs("\r\033[K", stderr);
}

void say(const std::string& text) {
  const bool ok = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  require(ok, "standard output: can't write");
}

bool was_interrupted() {
  static const bool watching = (watch_signals(), true);
  return watching && interrupted;
}

std::int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace mla::app
