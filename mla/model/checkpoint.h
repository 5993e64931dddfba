#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mla/model/safetensors.h"

namespace mla {

/// The weights in a directory: the files that model.safetensors.index.json names, or model.safetensors alone.
/// Mapped, not read: opening touches only the headers.
class Checkpoint {
 public:
  /// Opens and checks every file. Throws Error naming the file: if there are no weights; if the index names a
  /// path outside the directory, a missing file, or a tensor that its file lacks; if a file holds a tensor
  /// that the index doesn't name or gives to another file; if there are both an index and a model.safetensors
  /// that it leaves out; and as SafetensorsFile does.
  static Checkpoint open(const std::filesystem::path& directory);

  /// The tensor called `name`, or nullptr.
  const StoredTensor* find(std::string_view name) const;
  /// The tensor called `name`; Error naming its file, what was found and what was expected unless it is
  /// there, has `shape`, and is of one of `types`.
  const StoredTensor& tensor(std::string_view name, std::span<const std::int64_t> shape,
                             std::initializer_list<StoredType> types) const;
  const StoredTensor& tensor(std::string_view name, std::initializer_list<std::int64_t> shape,
                             std::initializer_list<StoredType> types) const {
    return tensor(name, std::span(shape.begin(), shape.size()), types);
  }

  /// All names, in order (by bytes).
  std::vector<std::string> names() const;
  /// The path of the file that holds the tensor called `name`; Error if there is none.
  const std::string& file_of(std::string_view name) const;
  /// Bytes of all tensors.
  std::int64_t total_bytes() const;
  /// The directory, for messages.
  const std::string& source() const { return source_; }

 private:
  struct Place {
    const StoredTensor* tensor = nullptr;
    std::size_t file = 0;
  };

  void add_file(const std::filesystem::path& path);
  void check_index(const std::map<std::string, std::string>& weight_map, const std::string& index) const;

  std::string source_;
  std::vector<std::string> paths_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Place, std::less<>> places_;
};

/// Throws "`source`: needs X GiB of memory, Y GiB are available" unless `needed` bytes fit into `available`.
void check_fits(std::int64_t needed, std::int64_t available, const std::string& source);

/// Bytes that this process can take before memory runs out: MemAvailable of /proc/meminfo, or what its
/// control group (version 2 or 1) still allows if that is less; file pages of the group count as free, since
/// they can be dropped. `root` stands for / in tests. Throws Error if /proc/meminfo can't be read.
std::int64_t available_memory(const std::filesystem::path& root = "/");

}  // namespace mla
