#pragma once
#include <filesystem>
#include <string>

namespace mla {

/// A file that this process holds for itself for the life of the object (flock: among those that ask; gone
/// with the process, however it ends).
class FileLock {
 public:
  /// Throws Error naming `path` if it can't be opened, and with `held` if another process or object has it.
  FileLock(const std::filesystem::path& path, const std::string& held);
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock();

 private:
  int fd_ = -1;
};

}  // namespace mla
