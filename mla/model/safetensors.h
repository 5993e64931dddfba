#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mla/core/mapped_file.h"

namespace mla {

/// Element types of the safetensors format.
enum class StoredType : std::uint8_t {
  boolean,
  f4,
  f6_e2m3,
  f6_e3m2,
  u8,
  i8,
  f8_e4m3,
  f8_e5m2,
  f8_e8m0,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  c64,
  f64,
  i64,
  u64,
};

/// The format's own name of `type`: "F32", "BF16", "F8_E4M3" ...
const char* name_of(StoredType type);

/// One tensor of a file: row-major over `shape`, little-endian, `data` aligned for its type. The bytes belong
/// to the file and live as long as it does.
struct StoredTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> data;

  /// Values it holds (1 for a scalar).
  std::int64_t elements() const;
};

/// "[2, 3]", for messages.
std::string shape_text(std::span<const std::int64_t> shape);

/// Reads a file of the safetensors format: 8 bytes of header length (little-endian), the header (a JSON
/// object: tensor > {dtype, shape, data_offsets}, and `__metadata__` > strings), then the data, which the
/// tensors must cover without gap or overlap, as the format's own reader demands. Everything is checked
/// before use; beyond the format, a tensor must lie at a multiple of its element size, so that it can be used
/// where it is. Returns the tensors in order of their names; their data points into `bytes`, which must begin
/// at a multiple of 8 and outlive them. `source` names the file in errors; Error names the file, the tensor
/// and the field, what was found and what was expected.
std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& source);

/// A safetensors file, mapped into memory: nothing is copied, and pages are read when they are touched.
class SafetensorsFile {
 public:
  /// Maps and checks `path`; throws Error as parse_safetensors and MappedFile do.
  explicit SafetensorsFile(const std::filesystem::path& path);

  /// All tensors in order of their names (by bytes).
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  /// The tensor called `name`, or nullptr.
  const StoredTensor* find(std::string_view name) const;

 private:
  MappedFile file_;
  std::vector<StoredTensor> tensors_;
};

}  // namespace mla
