"""Tensors of any kind: torch's, numpy's, or whatever speaks DLPack. Torch is looked at only where it is loaded already."""
import functools
import sys
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy

from mla import _core


class Lent(tuple):
    """A tensor of another library: (address, shape, strides, DLPack's type code, bits, what keeps the memory).

    kind is its class's name; it has the __array_namespace__ of its library, if that has one.
    """


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def given(name: str, array: Any) -> Any:
    """The tensor as the extension module takes it, without a copy. Raises TypeError or ValueError naming the argument.

    A call of a few microseconds passes here six times.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if not array.is_cpu:
            raise ValueError(f"{name}: found a tensor on {array.device}, expected one on the CPU")
        code = (_codes or _fill_codes()).get(array.dtype)
        if code is None:
            raise TypeError(f"{name}: found a tensor of {array.dtype}, expected f32, bf16, f16, int32 or bytes")
        try:
            address = array.data_ptr()
        except RuntimeError:  # sparse ones, those inside torch.vmap
            address = 0
        if address == 0 and (array.layout is not torch.strided or array.numel() > 0):
            raise TypeError(f"{name}: found a {type(array).__name__} of layout {array.layout} without memory that can be read")
        if array.is_neg():
            raise ValueError(f"{name}: found a view of the negated values, expected its resolve_neg()")
        return (address, array.shape, array.stride(), *code)
    if isinstance(array, numpy.ndarray):
        return _given_numpy(name, array)
    if type(array) is Lent:
        return array
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        if array.__dlpack_device__()[0] != 1:
            raise ValueError(f"{name}: found a tensor that is not on the CPU")
        try:
            lent = Lent(_core.lent(array))
        except TypeError:
            raise TypeError(f"{name}: found {type(array).__name__}, whose __dlpack__ gave nothing that can be read") from None
        return _of_library(array, lent)
    raise TypeError(f"{name}: found {type(array).__name__}, expected a tensor of torch, numpy or another kind with __dlpack__")


def given_or_none(name: str, array: Optional[Any]) -> Optional[Any]:
    return None if array is None else given(name, array)


def read_once(array: Any, given_: Any) -> Any:
    """The array, or what `given` made of it if it is another library's: reading such a one again may copy it again."""
    return given_ if type(given_) is Lent else array


def shape_of(name: str, array: Any, dims: int) -> Tuple[int, ...]:
    """Of what `given` returned. Raises ValueError for another number of dimensions."""
    shape = array[1] if isinstance(array, tuple) else array.shape
    if len(shape) != dims:
        raise ValueError(f"{name}: found {len(shape)} dimensions, expected {dims}")
    return shape


def last_of(array: Optional[Any]) -> Optional[int]:
    """The size of the last dimension of what `given_or_none` returned."""
    if array is None:
        return None
    return ((array[1] if isinstance(array, tuple) else array.shape) or (0,))[-1]


def columns(array: Any, first: int, last: int) -> Any:
    """[..., first:last] of a tensor of any kind (of `read_once`), the same memory."""
    if is_torch(array) or isinstance(array, numpy.ndarray):
        return array[..., first:last]
    address, shape, strides, code, bits, keeper = array
    part = Lent((address + first * strides[-1] * bits // 8, (*shape[:-1], last - first), strides, code, bits, keeper))
    return _of_library(array, part)


def int32s(name: str, array: Any) -> numpy.ndarray:
    """A tensor of int32 as numpy's, the same memory."""
    given(name, array)
    found = array.numpy() if is_torch(array) else array if isinstance(array, numpy.ndarray) else numpy.from_dlpack(array)
    if found.dtype != numpy.int32:
        raise TypeError(f"{name}: expected int32")
    return found


def empty(like: Any, shape: Sequence[int], is_f32: bool = False, turned: bool = False) -> Any:
    """A new tensor of the kind of `like` (of `read_once`), of its type or f32. `handed_back` says what the caller gets for it.

    turned: a matrix whose columns are contiguous, as FlashMLA gives some; of torch's and numpy's kind only.
    """
    if is_torch(like):
        torch = sys.modules["torch"]
        made = torch.empty(*(shape[::-1] if turned else shape), dtype=torch.float32 if is_f32 else like.dtype, device=_cpu(torch))
        return made.T if turned else made
    if isinstance(like, numpy.ndarray):
        return numpy.empty(shape, numpy.float32 if is_f32 else like.dtype, order="F" if turned else "C")
    code = (2, 32) if is_f32 else like[3:5]
    if hasattr(like, "__array_namespace__"):
        return _core.blank(tuple(shape), *code)
    if code not in _numpy_types:
        raise TypeError(f"q: found {like.kind} of a type that numpy lacks, and no __array_namespace__ to make results with")
    return numpy.empty(shape, _numpy_types[code])


def handed_back(like: Any, *made: Any) -> Tuple[Any, ...]:
    """What `empty` made for `like`, as the caller gets it: of its library where it tells which that is, else of numpy."""
    if type(like) is not Lent or not hasattr(like, "__array_namespace__"):
        return made
    library = like.__array_namespace__()
    return tuple(library.from_dlpack(array) for array in made)


# ---------------------------------------------------------------- what the above is made of

@functools.lru_cache(maxsize=None)
def _cpu(torch: Any) -> Any:
    return torch.device("cpu")


_codes: Dict[Any, Tuple[int, int]] = {}
_numpy_types = {(2, 32): numpy.float32, (2, 16): numpy.float16}
_foreign_codes = {"bfloat16": (4, 16), "float8_e4m3fn": (1, 8)}  # by the names that the package ml_dtypes gives them


def _fill_codes() -> Dict[Any, Tuple[int, int]]:
    """DLPack's type code and the bits of the types of torch that are taken. Bytes are bytes, whatever they stand for."""
    torch = sys.modules["torch"]
    names = {"float32": (2, 32), "float16": (2, 16), "bfloat16": (4, 16), "float64": (2, 64), "int32": (0, 32), "int64": (0, 64),
             "uint8": (1, 8), "int8": (1, 8), "float8_e4m3fn": (1, 8)}
    _codes.update({getattr(torch, name): code for name, code in names.items() if hasattr(torch, name)})
    return _codes


def _of_library(array: Any, lent: Lent) -> Lent:
    """`lent`, with what results and errors need to know of the array that it is, or is a part, of."""
    lent.kind = array.kind if type(array) is Lent else type(array).__name__
    if hasattr(array, "__array_namespace__"):
        lent.__array_namespace__ = array.__array_namespace__
    return lent


def _given_numpy(name: str, array: numpy.ndarray) -> Any:
    dtype = array.dtype
    if not array.flags.c_contiguous and any(stride % dtype.itemsize for stride in array.strides):
        raise ValueError(f"{name}: found strides of {array.strides} bytes, expected multiples of a value's {dtype.itemsize}")
    if dtype.kind in "fiu" and dtype.byteorder != ">":
        return array
    code = _foreign_codes.get(dtype.name)
    if code is None:
        raise TypeError(f"{name}: found an array of {dtype}, expected floats or integers")
    strides = tuple(stride // dtype.itemsize for stride in array.strides)
    return (array.__array_interface__["data"][0], array.shape, strides, *code)
