#include "mla/core/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "mla/core/error.h"

namespace mla {

FileLock::FileLock(const std::filesystem::path& path, const std::string& held)
    : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  require(fd_ >= 0, "{}: can't open: {}", path.string(), std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
  const int error = errno;
  ::close(fd_);
  if (error == EWOULDBLOCK) fail("{}: {}", path.string(), held);
  if (error == EINVAL || error == ENOLCK || error == EOPNOTSUPP) {
    fd_ = -1;  // a file system without locks
    return;
  }
  fail("{}: can't lock: {}", path.string(), std::strerror(error));
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace mla
