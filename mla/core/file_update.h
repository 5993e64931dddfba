#pragma once
#include <cstddef>
#include <filesystem>
#include <span>

namespace mla {

/// A file that is written in pieces to a new file beside it and put in its place when it is whole, so that a
/// reader sees the old file or the new one and never half of it, also if this process is killed or the
/// machine stops at any instant (a kill leaves PATH.<process>.tmp behind). Every failure is an Error that
/// names the path, and leaves the old file as it was and nothing beside it.
class FileUpdate {
 public:
  /// Makes the file beside `path`.
  explicit FileUpdate(std::filesystem::path path);
  FileUpdate(const FileUpdate&) = delete;
  FileUpdate& operator=(const FileUpdate&) = delete;
  /// Removes the file beside, unless it was committed.
  ~FileUpdate();

  /// Appends.
  void write(std::span<const std::byte> bytes);
  /// Waits until the bytes are on the disk and puts the file in place.
  void commit();

 private:
  [[noreturn]] void give_up(const char* what);
  void discard();

  std::filesystem::path path_, beside_;
  int fd_ = -1;
};

/// Asks that names made or changed in `directory` outlast a stop of the machine. File systems that can't do
/// so are left alone.
void sync_directory(const std::filesystem::path& directory);

}  // namespace mla
