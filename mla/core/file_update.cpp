#include "mla/core/file_update.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "mla/core/error.h"

namespace mla {

FileUpdate::FileUpdate(std::filesystem::path path)
    : path_(std::move(path)), beside_(path_.string() + fmt::format(".{}.tmp", ::getpid())) {
  fd_ = ::open(beside_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("{}: can't create: {}", path_.string(), std::strerror(errno));
}

FileUpdate::~FileUpdate() {
  discard();
}

void FileUpdate::discard() {
  if (fd_ < 0) return;
  ::close(std::exchange(fd_, -1));
  ::unlink(beside_.c_str());
}

void FileUpdate::give_up(const char* what) {
  const std::string why = std::strerror(errno);
  discard();
  fail("{}: can't {}: {}", path_.string(), what, why);
}

void FileUpdate::write(std::span<const std::byte> bytes) {
  require(fd_ >= 0, "{}: can't write: the update is over", path_.string());
  while (!bytes.empty()) {
    const ssize_t wrote = ::write(fd_, bytes.data(), bytes.size());
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) give_up("write");
    bytes = bytes.subspan(static_cast<std::size_t>(wrote));
  }
}

void FileUpdate::commit() {
  require(fd_ >= 0, "{}: can't write: the update is over", path_.string());
  if (::fsync(fd_) != 0) give_up("write");
  if (::rename(beside_.c_str(), path_.c_str()) != 0) give_up("replace");
  ::close(std::exchange(fd_, -1));
  sync_directory(path_.parent_path());
}

void sync_directory(const std::filesystem::path& directory) {
  const int fd = ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace mla
