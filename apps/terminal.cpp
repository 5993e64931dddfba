#include "apps/terminal.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <utility>

#include "mla/core/error.h"

namespace mla::app {
namespace {

volatile std::sig_atomic_t interrupted = 0;

extern "C" void note_signal(int) {
  interrupted = 1;
}

void watch_signals() {
  struct sigaction action {};
  action.sa_handler = note_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second one kills
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

Progress::Progress(std::string what, std::int64_t total)
    : what_(std::move(what)), total_(total), started_(now()), is_terminal_(::isatty(STDERR_FILENO) == 1) {}

void Progress::show(std::int64_t done) {
  const double time = now();
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

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void say(const std::string& text) {
  const bool ok = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  require(ok, "standard output: can't write");
}

bool was_interrupted() {
  static const bool watching = (watch_signals(), true);
  return watching && interrupted != 0;
}

std::int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace mla::app
