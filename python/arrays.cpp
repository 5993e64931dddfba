#include "python/arrays.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "mla/core/error.h"
#include "mla/core/parallel.h"
#include "mla/core/parts.h"
#include "mla/kernels/leaf.h"

namespace mla::python {
namespace {

using Code = nb::dlpack::dtype_code;

bool is(const Tensor& t, Code code, int bits) {
  return t.code == static_cast<int>(code) && t.bits == bits;
}

std::int64_t size_of(const Strided& s) {
  std::int64_t size = 1;
  for (int d = 0; d < s.dims; ++d) size *= s.shape[d];
  return size;
}

void describe(const char* name, const Tensor& array, int dims, std::int64_t element, Strided& s) {
  require(array.ndim == dims, "{}: found {} dimensions, expected {}", name, array.ndim, dims);
  s.name = name;
  s.data = static_cast<std::byte*>(array.data);
  s.dims = dims;
  for (int d = 0; d < dims; ++d) {
    s.shape[d] = array.shape[d];
    s.strides[d] = array.stride[d] * element;
  }
  if (size_of(s) > 0) return;
  // Strides of a tensor without values say nothing (numpy: 0): those that a dense one would have.
  for (int d = dims; d-- > 0; element *= std::max(s.shape[d], std::int64_t{1})) s.strides[d] = element;
}

bool is_contiguous(const Strided& s, std::int64_t element) {
  for (int d = s.dims; d-- > 0; element *= s.shape[d]) {
    if (s.shape[d] != 1 && s.strides[d] != element) return false;
  }
  return true;
}

/// Calls use(first byte, index of the first value, values, bytes from one to the next) for pieces of the last
/// dimension, or of all of them where there are no gaps, on all threads.
template <class Use>
void for_pieces(const Strided& s, std::int64_t element, const Use& use) {
  const std::int64_t width = s.shape[s.dims - 1], size = size_of(s);
  if (size == 0) return;
  if (is_contiguous(s, element)) {
    constexpr std::int64_t most = 4096;
    return parallel_for(parts(size, most), most, [&](std::int64_t i) {
      use(s.data + i * most * element, i * most, std::min(most, size - i * most), element);
    });
  }
  parallel_for(size / width, width, [&](std::int64_t row) {
    std::byte* at = s.data;
    std::int64_t rest = row;
    for (int d = s.dims - 1; d-- > 0; rest /= s.shape[d]) at += rest % s.shape[d] * s.strides[d];
    use(at, row * width, width, s.strides[s.dims - 1]);
  });
}

template <class Stored>
Stored load(const std::byte* from) {
  Stored value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float read_value(DType type, const std::byte* from) {
  return type == DType::f32    ? load<float>(from)
         : type == DType::bf16 ? to_float(load<bf16>(from))
                               : f16_to_float(load<std::uint16_t>(from));
}

void write_value(DType type, float value, std::byte* to) {
  if (type == DType::f32) {
    std::memcpy(to, &value, sizeof value);
  } else {
    const std::uint16_t half = type == DType::bf16 ? to_bf16(value).bits : to_f16(value);
    std::memcpy(to, &half, sizeof half);
  }
}

}  // namespace

bool Tensor::read(nb::handle from, Tensor& t) noexcept {
  try {
    if (!nb::isinstance<nb::tuple>(from)) {
      const auto array = nb::cast<nb::ndarray<nb::ro, nb::device::cpu>>(from);
      if (array.ndim() > most_dims) return false;
      t = {const_cast<void*>(array.data()),
           static_cast<int>(array.ndim()),
           {},
           {},
           array.dtype().code,
           array.dtype().bits,
           nb::ndarray<>(array)};
      for (int d = 0; d < t.ndim; ++d) {
        t.shape[d] = static_cast<std::int64_t>(array.shape(d));
        t.stride[d] = array.stride(d);
      }
      return true;
    }
    const auto parts = nb::borrow<nb::tuple>(from);
    const nb::tuple shape(parts[1]), stride(parts[2]);
    if (shape.size() > most_dims || stride.size() != shape.size()) return false;
    t = {reinterpret_cast<void*>(nb::cast<std::uintptr_t>(parts[0])),
         static_cast<int>(shape.size()),
         {},
         {},
         nb::cast<int>(parts[3]),
         nb::cast<int>(parts[4]),
         {}};
    for (int d = 0; d < t.ndim; ++d) {
      t.shape[d] = nb::cast<std::int64_t>(shape[d]);
      t.stride[d] = nb::cast<std::int64_t>(stride[d]);
    }
    return true;
  } catch (const std::exception&) {
    PyErr_Clear();
    return false;
  }
}

Floats floats(const char* name, const Tensor& array, int dims) {
  Floats f;
  if (is(array, Code::Float, 32)) {
    f.type = DType::f32;
  } else if (is(array, Code::Float, 16)) {
    f.type = DType::f16;
  } else if (is(array, Code::Bfloat, 16)) {
    f.type = DType::bf16;
  } else {
    throw nb::type_error((std::string(name) + ": expected float32, bfloat16 or float16").c_str());
  }
  describe(name, array, dims, size_of(f.type), f);
  return f;
}

Strided bytes(const char* name, const Input& array, int dims) {
  if (array.bits != 8)
    throw nb::type_error((std::string(name) + ": expected bytes: float8_e4m3fn, uint8 or int8").c_str());
  Strided s;
  describe(name, array, dims, 1, s);
  return s;
}

const float* contiguous(const Floats& array, Buffer<float>& memory) {
  if (array.type == DType::f32 && is_contiguous(array, 4)) return reinterpret_cast<const float*>(array.data);
  float* out = memory.resize(size_of(array));
  const LeafKernels& leaf = leaf_kernels();
  for_pieces(array, size_of(array.type),
             [&](const std::byte* at, std::int64_t first, std::int64_t count, std::int64_t step) {
               float* to = out + first;
               if (array.type == DType::bf16 && step == 2)
                 return leaf.bf16_to_f32(reinterpret_cast<const bf16*>(at), to, count);
               if (array.type == DType::f16 && step == 2)
                 return leaf.f16_to_f32(reinterpret_cast<const std::uint16_t*>(at), to, count);
               for (std::int64_t i = 0; i < count; ++i) to[i] = read_value(array.type, at + i * step);
             });
  return out;
}

void write(const float* values, const Floats& array) {
  const LeafKernels& leaf = leaf_kernels();
  for_pieces(array, size_of(array.type),
             [&](std::byte* at, std::int64_t first, std::int64_t count, std::int64_t step) {
               const float* from = values + first;
               if (array.type == DType::bf16 && step == 2)
                 return leaf.f32_to_bf16(from, reinterpret_cast<bf16*>(at), count);
               for (std::int64_t i = 0; i < count; ++i) write_value(array.type, from[i], at + i * step);
             });
}

Floats exchanged(Floats array, int one, int other) {
  std::swap(array.shape[one], array.shape[other]);
  std::swap(array.strides[one], array.strides[other]);
  return array;
}

Floats part(Floats array, std::int64_t first, std::int64_t count, int dim) {
  array.data += first * array.strides[dim];
  array.shape[dim] = count;
  return array;
}

Buffer<std::int32_t> integers(const char* name, const Input& array, int dims) {
  if (!is(array, Code::Int, 32)) throw nb::type_error((std::string(name) + ": expected int32").c_str());
  Strided s;
  describe(name, array, dims, 4, s);
  Buffer<std::int32_t> out(size_of(s));
  for_pieces(s, 4, [&](const std::byte* at, std::int64_t first, std::int64_t count, std::int64_t step) {
    for (std::int64_t i = 0; i < count; ++i) out[first + i] = load<std::int32_t>(at + i * step);
  });
  return out;
}

void expect_size(const Strided& array, int dim, std::int64_t expected) {
  require(array.shape[dim] == expected, "{}: found {} in dimension {}, expected {}", array.name,
          array.shape[dim], dim, expected);
}

void expect_dense_rows(const Strided& array, std::int64_t element) {
  const int last = array.dims - 1;
  require(array.shape[last] <= 1 || array.strides[last] == element,
          "{}: found values {} bytes apart in the last dimension, expected {}: it may not be strided",
          array.name, array.strides[last], element);
}

nb::tuple lent(const nb::ndarray<nb::ro, nb::device::cpu>& array) {
  nb::list shape, strides;
  for (std::size_t d = 0; d < array.ndim(); ++d) {
    shape.append(array.shape(d));
    strides.append(array.stride(d));
  }
  using Kept = nb::ndarray<nb::ro, nb::device::cpu>;
  const nb::capsule keeper(new Kept(array), [](void* kept) noexcept { delete static_cast<Kept*>(kept); });
  return nb::make_tuple(reinterpret_cast<std::uintptr_t>(array.data()), nb::tuple(shape), nb::tuple(strides),
                        +array.dtype().code, +array.dtype().bits, keeper);
}

nb::ndarray<nb::array_api> blank(const std::vector<std::size_t>& shape, int code, int bits) {
  std::size_t bytes = static_cast<std::size_t>(bits) / 8;
  for (const std::size_t size : shape) bytes *= size;
  auto* const data = new std::byte[bytes];
  const nb::capsule keeper(data, [](void* p) noexcept { delete[] static_cast<std::byte*>(p); });
  const nb::dlpack::dtype type{static_cast<std::uint8_t>(code), static_cast<std::uint8_t>(bits), 1};
  return nb::ndarray<nb::array_api>(data, shape.size(), shape.data(), keeper, nullptr, type);
}

}  // namespace mla::python
