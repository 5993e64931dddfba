// A safetensors file from anyone: parse_safetensors either gives tensors whose every byte can be read or
// throws mla::Error.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "mla/core/buffer.h"
#include "mla/core/error.h"
#include "mla/model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  mla::Buffer<std::uint8_t> file(
      static_cast<std::int64_t>(size));  // files are mapped aligned, the fuzzer's data may not be
  std::copy(data, data + size, file.data());
  try {
    std::size_t total = 0;
    unsigned sum = 0;
    for (const mla::StoredTensor& tensor :
         mla::parse_safetensors(std::as_bytes(file.span()), "model.safetensors")) {
      for (const std::byte byte : tensor.data) sum += std::to_integer<unsigned>(byte);
      total += tensor.data.size();
    }
    [[maybe_unused]] volatile unsigned kept = sum;  // the reads must happen
    if (total > size) std::abort();
  } catch (const mla::Error&) {
  }
  return 0;
}
