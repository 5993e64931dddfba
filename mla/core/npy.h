#pragma once
#include <cstdint>
#include <filesystem>
#include <vector>

namespace mla {

/// An array of f32 as NumPy's .npy files hold it (format 1.0, C order): `data` is row-major over `shape`.
struct NpyArray {
  std::vector<std::int64_t> shape;
  std::vector<float> data;
};

/// Reads a little-endian f32 .npy file. Throws Error naming the file and what it holds instead.
NpyArray read_npy(const std::filesystem::path& path);

/// Writes `array`, beside and then renamed. Throws Error naming the path if it can't be written.
void write_npy(const std::filesystem::path& path, const NpyArray& array);

}  // namespace mla
