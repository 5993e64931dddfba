#pragma once
#include <cstdint>
#include <string>

namespace mla::app {

/// Progress of long work on standard error: one line that rewrites itself when that is a terminal, nothing
/// otherwise. The line appears after half a second and goes away with the object.
class Progress {
 public:
  Progress(std::string what, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void show(std::int64_t done);

 private:
  std::string what_;
  std::int64_t total_;
  double started_;
  double shown_ = 0;
  bool is_terminal_;
};

/// Writes text to standard output at once. Throws Error if that fails (a closed pipe, a full disk).
void say(const std::string& text);

/// From the first call on, Ctrl-C (SIGINT) and SIGTERM only make this true; a second one ends the program as
/// usual. The first call belongs before any other thread exists.
bool was_interrupted();

/// The most memory this process has had resident so far, in bytes.
std::int64_t peak_rss_bytes();

}  // namespace mla::app
