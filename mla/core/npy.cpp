#include "mla/core/npy.h"

#include <fmt/ranges.h>

#include <charconv>
#include <cstring>
#include <string>
#include <string_view>

#include "mla/core/error.h"
#include "mla/core/mapped_file.h"

namespace mla {
namespace {

constexpr std::string_view magic{"\x93NUMPY\x01\x00", 8};

/// The text between `open` and `close` after `key` in the header's dictionary.
std::string_view field(std::string_view header, std::string_view key, char open, char close,
                       const std::string& file) {
  const std::size_t at = header.find(key);
  require(at != header.npos, "{}: header lacks {}", file, key);
  const std::size_t begin = header.find(open, at + key.size());
  const std::size_t end = begin == header.npos ? begin : header.find(close, begin + 1);
  require(end != header.npos, "{}: header's {} is not readable", file, key);
  return header.substr(begin + 1, end - begin - 1);
}

std::vector<std::int64_t> parse_shape(std::string_view text, const std::string& file) {
  std::vector<std::int64_t> shape;
  while (!text.empty()) {
    if (text.front() == ' ' || text.front() == ',') {
      text.remove_prefix(1);
      continue;
    }
    std::int64_t side = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), side);
    require(error == std::errc{} && side >= 0, "{}: header's shape is not readable", file);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    shape.push_back(side);
  }
  return shape;
}

}  // namespace

NpyArray read_npy(const std::filesystem::path& path) {
  const std::string file = path.string();
  const MappedFile mapped(path);
  const std::string_view bytes{reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size()};
  require(bytes.size() >= 10 && bytes.substr(0, 8) == magic, "{}: not a version 1.0 .npy file", file);
  const auto header_size = static_cast<std::size_t>(static_cast<unsigned char>(bytes[8])) +
                           256 * static_cast<std::size_t>(static_cast<unsigned char>(bytes[9]));
  require(bytes.size() >= 10 + header_size, "{}: ends inside its header", file);
  const std::string_view header = bytes.substr(10, header_size);
  const std::string_view type = field(header, "'descr'", '\'', '\'', file);
  require(type == "<f4", "{}: found elements of type {}, expected <f4", file, type);
  require(header.find("'fortran_order': False") != header.npos, "{}: found Fortran order, expected C order",
          file);

  NpyArray array{parse_shape(field(header, "'shape'", '(', ')', file), file), {}};
  std::int64_t count = 1;
  for (const std::int64_t side : array.shape) {
    require(!__builtin_mul_overflow(count, side, &count), "{}: shape is too large", file);
  }
  const std::string_view data = bytes.substr(10 + header_size);
  require(static_cast<std::int64_t>(data.size()) / 4 == count && data.size() % 4 == 0,
          "{}: found {} bytes of data, expected {} values of 4 bytes", file, data.size(), count);
  array.data.resize(static_cast<std::size_t>(count));
  if (count > 0) std::memcpy(array.data.data(), data.data(), data.size());
  return array;
}

void write_npy(const std::filesystem::path& path, const NpyArray& array) {
  std::string header = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{}), }}",
                                   fmt::join(array.shape, ", "), array.shape.size() == 1 ? "," : "");
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');  // data starts at a multiple of 64
  header += '\n';
  std::string bytes(magic);
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(array.data.data()), array.data.size() * sizeof(float));
  write_text(path, bytes);
}

}  // namespace mla
