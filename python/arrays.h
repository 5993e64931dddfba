#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mla/core/buffer.h"
#include "mla/core/dtype.h"

/// What the bindings share: tensors as Python hands them over (DLPack), read and written as the library wants
/// them.
namespace mla::python {

namespace nb = nanobind;

/// A tensor as Python gave it: numpy's, or the tuple (address, shape, strides in elements, DLPack's type
/// code, bits, perhaps what keeps the memory) that mla/_arrays.py makes of torch's, whose DLPack takes five
/// times as long, and of others'.
struct Tensor {
  static constexpr int most_dims = 8;
  void* data = nullptr;
  int ndim = 0;
  std::int64_t shape[most_dims]{};
  std::int64_t stride[most_dims]{};  ///< elements
  int code = 0, bits = 0;            ///< of the type, as in DLPack
  nb::ndarray<> numpys;              ///< keeps the memory; that of a tuple is kept by who gave it

  /// False, without a Python error, if `from` is no tensor.
  static bool read(nb::handle from, Tensor& tensor) noexcept;
};

using Input = Tensor;   // read only
using Output = Tensor;  // written

/// A tensor in memory, of any strides. Lives no longer than the argument it was made from.
struct Strided {
  static constexpr int most_dims = 4;
  std::string name;  ///< of the argument, for errors
  std::byte* data = nullptr;
  int dims = 0;
  std::int64_t shape[most_dims]{};
  std::int64_t strides[most_dims]{};  ///< bytes

  std::byte* at(std::int64_t i, std::int64_t j = 0, std::int64_t k = 0) const {
    return data + i * strides[0] + j * strides[1] + k * strides[2];
  }
};

/// A tensor of f32, bf16 or f16.
struct Floats : Strided {
  DType type = DType::f32;
};

/// Throw TypeError for other types and Error for other numbers of dimensions, naming the argument.
Floats floats(const char* name, const Tensor& array, int dims);
/// Bytes: int8, uint8 or a type of 8 bits.
Strided bytes(const char* name, const Input& array, int dims);

/// Bytes of f32 queries and results that a thread keeps from call to call of decoding and sparse attention:
/// long calls go through them in parts.
constexpr std::int64_t part_bytes = std::int64_t{64} << 20;

/// Contiguous f32 of a tensor; its own memory where it is that already, else a copy in `memory`.
const float* contiguous(const Floats& array, Buffer<float>& memory);
/// Rounds contiguous values into a tensor.
void write(const float* values, const Floats& array);
/// The same memory with two dimensions exchanged.
Floats exchanged(Floats array, int one, int other);
/// Entries [first, first + count) of a dimension.
Floats part(Floats array, std::int64_t first, std::int64_t count, int dim = 0);

/// A contiguous copy of an int32 tensor.
Buffer<std::int32_t> integers(const char* name, const Input& array, int dims);

/// Throws Error unless the tensor's dimension `dim` is `expected`.
void expect_size(const Strided& array, int dim, std::int64_t expected);
/// Throws Error unless neighbouring values of the last dimension are neighbours in memory.
void expect_dense_rows(const Strided& array, std::int64_t element);

/// What a DLPack tensor is: the tuple that Tensor::read takes, with what keeps the memory.
nb::tuple lent(const nb::ndarray<nb::ro, nb::device::cpu>& array);
/// A new tensor that speaks DLPack.
nb::ndarray<nb::array_api> blank(const std::vector<std::size_t>& shape, int code, int bits);

}  // namespace mla::python

template <>
struct nanobind::detail::type_caster<mla::python::Tensor> {
  NB_TYPE_CASTER(mla::python::Tensor, const_name("object"))
  bool from_python(handle from, std::uint8_t, cleanup_list*) noexcept {
    return mla::python::Tensor::read(from, value);
  }
};
