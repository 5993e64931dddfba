#pragma once
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

namespace mla {

/// A file mapped read-only into memory for the life of this object.
class MappedFile {
 public:
  /// Maps all of `path`. An empty file maps to no bytes. Throws Error naming the path if it can't be opened
  /// or mapped.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// All of a text file. Throws Error naming the path if it can't be read.
std::string read_text(const std::filesystem::path& path);

/// Writes `bytes` to a new file beside `path` and renames it over `path`, so that a reader sees the old file
/// or the new one and never half of it. Throws Error naming the path, leaving nothing behind.
void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes);
void write_text(const std::filesystem::path& path, const std::string& text);

}  // namespace mla
