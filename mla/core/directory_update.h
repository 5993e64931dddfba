#pragma once
#include <filesystem>

namespace mla {

/// A directory of plain files (a checkpoint) that is replaced as a whole. The new files are written to
/// DIRECTORY.partial; publish() then makes the two directories change names in one step of the file system
/// (renameat2 with RENAME_EXCHANGE) and deletes the old files. At every instant, also if this process is
/// killed or the machine stops, DIRECTORY is whole: the old one or the new one.
///
/// File systems without that step (some network ones) get two: DIRECTORY to DIRECTORY.partial-old, then
/// DIRECTORY.partial to DIRECTORY. Killed between the two, DIRECTORY.partial-old is the whole one;
/// recover_directory() puts it back. Call that before reading a directory that may have been written so.
///
/// What a kill leaves behind (DIRECTORY.partial, DIRECTORY.partial-old) goes with the next update. Nobody
/// else may update the same directory meanwhile.
class DirectoryUpdate {
 public:
  /// How to replace a directory that is there.
  enum class Exchange {
    where_possible,  ///< in one step, where the file system has it
    never,           ///< in two steps (for tests)
  };

  /// Recovers `directory`, and makes DIRECTORY.partial anew and empty. The parent must be there. Throws Error
  /// naming the path.
  explicit DirectoryUpdate(const std::filesystem::path& directory,
                           Exchange exchange = Exchange::where_possible);
  DirectoryUpdate(const DirectoryUpdate&) = delete;
  DirectoryUpdate& operator=(const DirectoryUpdate&) = delete;
  /// Removes DIRECTORY.partial, unless it was published.
  ~DirectoryUpdate();

  /// Where to write the new files.
  const std::filesystem::path& partial() const { return partial_; }

  /// Puts the new files in place of the old ones. Throws Error, and leaves the old directory as it was, if
  /// something can't be written, or if the old one holds anything but files that the new one has too: it is
  /// then not ours to delete.
  void publish();

 private:
  void replace_in_two_steps();

  std::filesystem::path directory_, partial_, old_;
  Exchange exchange_;
  bool is_published_ = false;
};

/// Puts back what a kill between two steps of an update left as DIRECTORY.partial-old; else does nothing.
void recover_directory(const std::filesystem::path& directory);

}  // namespace mla
