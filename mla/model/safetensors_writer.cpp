#include "mla/model/safetensors_writer.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "mla/core/buffer.h"
#include "mla/core/error.h"
#include "mla/core/file_update.h"
#include "mla/kernels/leaf.h"

namespace mla {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::int64_t chunk = 1 << 16;  // values rounded to bf16 at a time

std::int64_t element_bytes(const TensorToWrite& tensor) {
  return tensor.type == StoredType::i64 ? 8 : tensor.type == StoredType::bf16 ? 2 : 4;
}

std::int64_t count_of(const TensorToWrite& tensor) {
  return std::visit([](const auto& values) { return static_cast<std::int64_t>(values.size()); },
                    tensor.values);
}

/// How many values the shape has, or -1 if that is no number.
std::int64_t count_of(std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t side : shape) {
    if (side < 0 || __builtin_mul_overflow(count, side, &count)) return -1;
  }
  return count;
}

void check(const TensorToWrite& tensor, const std::string& source) {
  require(!tensor.name.empty() && tensor.name != "__metadata__",
          "{}: name of a tensor: found '{}', expected one that is neither empty nor the metadata's", source,
          tensor.name);
  const bool is_float = std::holds_alternative<std::span<const float>>(tensor.values);
  const bool fits = is_float ? tensor.type == StoredType::f32 || tensor.type == StoredType::bf16
                             : tensor.type == StoredType::i64;
  require(fits, "{}: tensor {}: type: found {}, expected {}", source, tensor.name, name_of(tensor.type),
          is_float ? "F32 or BF16 for floats" : "I64 for integers");
  require(count_of(tensor.shape) == count_of(tensor), "{}: tensor {}: found {} values, expected the shape {}",
          source, tensor.name, count_of(tensor), shape_text(tensor.shape));
}

/// In the order of their data: widest elements first, then by name.
std::vector<const TensorToWrite*> in_order(std::span<const TensorToWrite> tensors) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::ranges::sort(order, [](const TensorToWrite* a, const TensorToWrite* b) {
    const std::int64_t wide = element_bytes(*a), other = element_bytes(*b);
    return wide != other ? wide > other : a->name < b->name;
  });
  return order;
}

/// The 8 bytes of length and the header.
std::string header_of(std::span<const TensorToWrite* const> order,
                      const std::map<std::string, std::string>& metadata, const std::string& source) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::int64_t begin = 0;
  for (const TensorToWrite* tensor : order) {
    const std::int64_t end = begin + count_of(*tensor) * element_bytes(*tensor);
    require(!header.contains(tensor->name), "{}: tensor {}: found twice, expected once", source,
            tensor->name);
    header[tensor->name] = {
        {"dtype", name_of(tensor->type)}, {"shape", tensor->shape}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    fail("{}: found a name or metadata that is not UTF-8, expected text", source);
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + text;
}

void write_rounded(std::span<const float> values, FileUpdate& file) {
  Buffer<bf16> rounded(std::min<std::int64_t>(chunk, static_cast<std::int64_t>(values.size())));
  while (!values.empty()) {
    const std::size_t count = std::min<std::size_t>(chunk, values.size());
    leaf_kernels().f32_to_bf16(values.data(), rounded.data(), static_cast<std::int64_t>(count));
    file.write(std::as_bytes(std::span(rounded.data(), count)));
    values = values.subspan(count);
  }
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  const std::string source = path.string();
  for (const TensorToWrite& tensor : tensors) check(tensor, source);
  const std::vector<const TensorToWrite*> order = in_order(tensors);
  const std::string header = header_of(order, metadata, source);
  FileUpdate file(path);
  file.write(std::as_bytes(std::span(header)));
  for (const TensorToWrite* tensor : order) {
    if (tensor->type == StoredType::bf16) {
      write_rounded(std::get<std::span<const float>>(tensor->values), file);
    } else {
      std::visit([&](const auto& values) { file.write(std::as_bytes(values)); }, tensor->values);
    }
  }
  file.commit();
}

}  // namespace mla
