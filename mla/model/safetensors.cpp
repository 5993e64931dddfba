#include "mla/model/safetensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "mla/core/error.h"
#include "mla/core/json.h"
#include "mla/model/config_fields.h"

namespace mla {
namespace {

using nlohmann::json;

struct TypeFacts {
  StoredType type;
  const char* name;
  std::int64_t bits;
};

/// In the order of StoredType.
constexpr std::array<TypeFacts, 20> type_table{{
    {StoredType::boolean, "BOOL", 8},    {StoredType::f4, "F4", 4},
    {StoredType::f6_e2m3, "F6_E2M3", 6}, {StoredType::f6_e3m2, "F6_E3M2", 6},
    {StoredType::u8, "U8", 8},           {StoredType::i8, "I8", 8},
    {StoredType::f8_e4m3, "F8_E4M3", 8}, {StoredType::f8_e5m2, "F8_E5M2", 8},
    {StoredType::f8_e8m0, "F8_E8M0", 8}, {StoredType::i16, "I16", 16},
    {StoredType::u16, "U16", 16},        {StoredType::f16, "F16", 16},
    {StoredType::bf16, "BF16", 16},      {StoredType::i32, "I32", 32},
    {StoredType::u32, "U32", 32},        {StoredType::f32, "F32", 32},
    {StoredType::c64, "C64", 64},        {StoredType::f64, "F64", 64},
    {StoredType::i64, "I64", 64},        {StoredType::u64, "U64", 64},
}};

const TypeFacts& facts_of(StoredType type) {
  return type_table[static_cast<std::size_t>(type)];
}

/// Bytes that an element must be aligned to.
std::int64_t alignment_of(StoredType type) {
  if (type == StoredType::c64) return 4;
  return std::max<std::int64_t>(facts_of(type).bits / 8, 1);
}

constexpr std::int64_t length_bytes = 8;
constexpr std::uint64_t max_header = 100'000'000;  // the format's own limit

/// Where in the data section a tensor lies.
struct Place {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  const StoredTensor* tensor = nullptr;
};

/// The header's text; checks the length before it.
std::string_view header_of(std::span<const std::byte> bytes, const std::string& source) {
  require(bytes.size() >= length_bytes, "{}: found {} bytes, expected at least the {} of the header's length",
          source, bytes.size(), length_bytes);
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < length_bytes; ++i)
    length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  require(length <= max_header, "{}: header length: found {}, expected at most {}", source, length,
          max_header);
  require(length <= bytes.size() - length_bytes,
          "{}: header length: found {}, expected at most the {} bytes that follow (is the file complete?)",
          source, length, bytes.size() - length_bytes);
  return {reinterpret_cast<const char*>(bytes.data()) + length_bytes, static_cast<std::size_t>(length)};
}

/// The entry of one tensor in the header, and the reader of its fields.
class Entry {
 public:
  Entry(const json& fields, const std::string& where) : fields_(fields), where_(where) {
    require(fields.is_object(), "{}: found {}, expected an object of dtype, shape and data_offsets", where,
            json_text(fields));
    for (const auto& item : fields.items()) {
      const std::string& key = item.key();
      require(key == "dtype" || key == "shape" || key == "data_offsets",
              "{}: found field {}, expected only dtype, shape and data_offsets", where, json_text(key));
    }
  }

  StoredType type() const {
    const json& value = field("dtype");
    for (const TypeFacts& facts : type_table) {
      if (value == facts.name) return facts.type;
    }
    fail("{}: dtype: found {}, expected a type of the safetensors format such as F32, BF16 or F8_E4M3",
         where_, json_text(value));
  }

  std::vector<std::int64_t> integers(const char* name) const {
    const json& value = field(name);
    require(value.is_array(), "{}: {}: found {}, expected an array of integers", where_, name,
            json_text(value));
    std::vector<std::int64_t> numbers;
    for (const json& item : value) {
      require(is_integer(item, 0, INT64_MAX), "{}: {}: found {}, expected integers from 0 to 2^63 - 1",
              where_, name, json_text(item));
      numbers.push_back(item.get<std::int64_t>());
    }
    return numbers;
  }

 private:
  const json& field(const char* name) const {
    const auto found = fields_.find(name);
    require(found != fields_.end(), "{}: {}: found nothing, expected the field", where_, name);
    return *found;
  }

  const json& fields_;
  const std::string& where_;
};

/// Bytes that a tensor of this shape takes, or nothing if that is no number of bytes.
std::optional<std::int64_t> bytes_of(StoredType type, std::span<const std::int64_t> shape) {
  std::int64_t bits = facts_of(type).bits;
  if (std::ranges::find(shape, 0) != shape.end()) return 0;
  for (const std::int64_t side : shape) {
    if (__builtin_mul_overflow(bits, side, &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

/// Reads and checks one tensor; `data` is the section after the header, `data_at` its place in the file.
Place read_tensor(const json& fields, std::span<const std::byte> data, std::int64_t data_at,
                  const std::string& where, StoredTensor& tensor) {
  const Entry entry(fields, where);
  tensor.type = entry.type();
  tensor.shape = entry.integers("shape");
  const std::vector<std::int64_t> offsets = entry.integers("data_offsets");
  const auto size = static_cast<std::int64_t>(data.size());
  require(offsets.size() == 2, "{}: data_offsets: found {} integers, expected 2", where, offsets.size());
  const std::int64_t begin = offsets[0];
  const std::int64_t end = offsets[1];
  require(begin <= end && end <= size,
          "{}: data_offsets: found [{}, {}], expected a range within the {} bytes of data", where, begin, end,
          size);
  const std::optional<std::int64_t> wanted = bytes_of(tensor.type, tensor.shape);
  require(wanted.has_value(),
          "{}: shape: found {}, expected sides whose product of {} values is a number of bytes below "
          "2^60",
          where, shape_text(tensor.shape), name_of(tensor.type));
  require(end - begin == *wanted, "{}: data_offsets: found {} bytes, expected {} for {} {}", where,
          end - begin, *wanted, name_of(tensor.type), shape_text(tensor.shape));
  const std::int64_t alignment = alignment_of(tensor.type);
  require((data_at + begin) % alignment == 0,
          "{}: data_offsets: found the data at byte {} of the file, expected a "
          "multiple of {} for {}",
          where, data_at + begin, alignment, name_of(tensor.type));
  tensor.data = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  return {begin, end, &tensor};
}

void check_metadata(const json& metadata, const std::string& source) {
  require(metadata.is_object(), "{}: __metadata__: found {}, expected an object of strings", source,
          json_text(metadata));
  for (const auto& item : metadata.items()) {
    require(item.value().is_string(), "{}: __metadata__: {}: found {}, expected a string", source,
            json_text(item.key()), json_text(item.value()));
  }
}

/// The tensors must lie one after another and fill the data.
void check_cover(std::vector<Place> places, std::int64_t size, const std::string& source) {
  std::ranges::sort(places, [](const Place& a, const Place& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::int64_t end = 0;
  for (const Place& place : places) {
    require(place.begin == end,
            "{}: tensor {}: data_offsets: found the begin {}, expected {} (tensors may neither "
            "overlap nor leave gaps)",
            source, json_text(place.tensor->name), place.begin, end);
    end = place.end;
  }
  require(end == size, "{}: found {} bytes of data, expected {}: the tensors must fill the file", source,
          size, end);
}

}  // namespace

const char* name_of(StoredType type) {
  return facts_of(type).name;
}

std::int64_t StoredTensor::elements() const {
  return static_cast<std::int64_t>(data.size()) * 8 / facts_of(type).bits;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::vector<StoredTensor> parse_safetensors(std::span<const std::byte> bytes, const std::string& source) {
  const std::string_view text = header_of(bytes, source);
  const json header = parse_json(text, source + ": header");
  require(header.is_object(), "{}: header: found {}, expected an object", source, json_text(header));
  const std::span<const std::byte> data = bytes.subspan(length_bytes + text.size());
  const auto data_at = length_bytes + static_cast<std::int64_t>(text.size());

  std::vector<StoredTensor> tensors;
  std::vector<Place> places;
  tensors.reserve(header.size());  // places point into it
  for (const auto& [name, fields] : header.items()) {
    if (name == "__metadata__") {
      check_metadata(fields, source);
      continue;
    }
    const std::string where = fmt::format("{}: tensor {}", source, json_text(name));
    StoredTensor& tensor = tensors.emplace_back();
    tensor.name = name;
    places.push_back(read_tensor(fields, data, data_at, where, tensor));
  }
  check_cover(std::move(places), static_cast<std::int64_t>(data.size()), source);
  return tensors;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), tensors_(parse_safetensors(file_.bytes(), path.string())) {}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = std::ranges::lower_bound(
      tensors_, name, {}, [](const StoredTensor& tensor) { return std::string_view(tensor.name); });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

}  // namespace mla
