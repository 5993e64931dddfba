#include "mla/core/directory_update.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "mla/core/error.h"
#include "mla/core/file_update.h"

namespace mla {
namespace {

namespace fs = std::filesystem;

/// The path to put suffixes to: "out/.partial" would lie inside, and a link must stay one.
fs::path real_path(const fs::path& directory) {
  std::error_code error;
  const fs::path real = fs::weakly_canonical(directory, error);  // what is not there yet stays as it is
  require(!error, "{}: can't resolve: {}", directory.string(), error.message());
  const fs::path path = real.has_filename() ? real : real.parent_path();
  require(path.has_filename(), "directory to write: found '{}', expected one with a name of its own",
          directory.string());
  return path;
}

fs::path with_suffix(const fs::path& path, const char* suffix) {
  return path.string() + suffix;
}

bool is_there(const fs::path& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

/// The names in `directory`. Throws Error unless all are regular files.
std::vector<fs::path> files_of(const fs::path& directory) {
  std::vector<fs::path> names;
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    require(entry->symlink_status().type() == fs::file_type::regular,
            "{}: found {}, which is no regular file, expected a directory of files only", directory.string(),
            entry->path().filename().string());
    names.push_back(entry->path().filename());
  }
  require(!error, "{}: can't read the directory: {}", directory.string(), error.message());
  return names;
}

/// Removes a directory of files, if it is there. Never more than that: a name that turns out to be a
/// directory ends it.
void remove_files(const fs::path& directory) {
  if (!is_there(directory)) return;
  for (const fs::path& name : files_of(directory)) {
    require(::unlink((directory / name).c_str()) == 0, "{}: can't remove: {}", (directory / name).string(),
            std::strerror(errno));
  }
  require(::rmdir(directory.c_str()) == 0, "{}: can't remove: {}", directory.string(), std::strerror(errno));
}

void rename_path(const fs::path& from, const fs::path& to) {
  require(::rename(from.c_str(), to.c_str()) == 0, "{}: can't move to {}: {}", from.string(), to.string(),
          std::strerror(errno));
}

/// Waits until the file's bytes are on the disk.
void sync_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require(fd >= 0, "{}: can't open: {}", path.string(), std::strerror(errno));
  const int result = ::fsync(fd);
  const int why = errno;
  ::close(fd);
  require(result == 0, "{}: can't write: {}", path.string(), std::strerror(why));
}

/// Makes two directories change names. False where the file system has no such step.
bool exchange_names(const fs::path& a, const fs::path& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  require(errno == EINVAL || errno == ENOSYS || errno == ENOTSUP, "{}: can't replace: {}", b.string(),
          std::strerror(errno));
  return false;
}

}  // namespace

DirectoryUpdate::DirectoryUpdate(const fs::path& directory, Exchange exchange)
    : directory_(real_path(directory)),
      partial_(with_suffix(directory_, ".partial")),
      old_(with_suffix(directory_, ".partial-old")),
      exchange_(exchange) {
  recover_directory(directory_);
  remove_files(partial_);
  require(::mkdir(partial_.c_str(), 0755) == 0, "{}: can't create: {}", partial_.string(),
          std::strerror(errno));
}

DirectoryUpdate::~DirectoryUpdate() {
  if (is_published_) return;
  try {
    remove_files(partial_);
  } catch (const Error&) {  // it goes with the next update, or that says why not
  }
}

void DirectoryUpdate::publish() {
  require(!is_published_, "{}: can't replace: the update is over", directory_.string());
  for (const fs::path& name : files_of(partial_)) sync_file(partial_ / name);
  sync_directory(partial_);
  if (!is_there(directory_)) {
    rename_path(partial_, directory_);
  } else {
    for (const fs::path& name : files_of(directory_)) {
      require(is_there(partial_ / name),
              "{}: found {}, expected only files that the new directory replaces: not deleted",
              directory_.string(), name.string());
    }
    if (exchange_ == Exchange::never || !exchange_names(partial_, directory_)) {
      replace_in_two_steps();
    }
  }
  is_published_ = true;
  sync_directory(directory_.parent_path());
  remove_files(partial_);
  remove_files(old_);
}

void DirectoryUpdate::replace_in_two_steps() {
  rename_path(directory_, old_);
  try {
    rename_path(partial_, directory_);
  } catch (const Error&) {
    ::rename(old_.c_str(), directory_.c_str());
    throw;
  }
}

void recover_directory(const fs::path& directory) {
  const fs::path path = real_path(directory);
  const fs::path old = with_suffix(path, ".partial-old");
  if (!is_there(old)) return;
  if (is_there(path)) return remove_files(old);
  rename_path(old, path);
}

}  // namespace mla
