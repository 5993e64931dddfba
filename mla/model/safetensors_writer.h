#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "mla/model/safetensors.h"

namespace mla {

/// One tensor to write: row-major over `shape`. Floats are stored as f32 or, rounded to nearest, as bf16;
/// integers as i64.
struct TensorToWrite {
  std::string name;
  std::vector<std::int64_t> shape;
  std::variant<std::span<const float>, std::span<const std::int64_t>> values;
  StoredType type = StoredType::f32;
};

/// Writes a safetensors file (format as in parse_safetensors): the header's keys sorted and padded so that
/// the data begins at a multiple of 8, the tensors with the widest elements first, so that each lies at a
/// multiple of its element size. The default metadata is what transformers asks for. The file appears under
/// `path` when it is whole (FileUpdate). Throws Error naming the file, and the tensor if it is the culprit: a
/// name twice, a shape that isn't the values', a type that isn't theirs.
void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace mla
