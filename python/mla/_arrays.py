"""Tensors of any kind: torch's, numpy's, or whatever speaks DLPack. Torch is looked at only where it is loaded already."""
import sys
from typing import Any, Dict, Optional, Sequence, Tuple

import numpy


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def given(name: str, array: Any) -> Any:
    """The tensor as the extension module takes it, without a copy. Raises TypeError or ValueError naming the argument."""
    if is_torch(array):
        if not array.is_cpu:
            raise ValueError(f"{name}: found a tensor on {array.device}, expected one on the CPU")
        code = (_codes or _fill_codes()).get(array.dtype)
        if code is None:
            raise TypeError(f"{name}: found a tensor of {array.dtype}, expected f32, bf16, f16, int32 or bytes")
        return (array.data_ptr(), tuple(array.shape), array.stride(), *code)
    if isinstance(array, numpy.ndarray):
        if array.dtype.byteorder == ">" or array.dtype.kind not in "fiu":
            raise TypeError(f"{name}: found an array of {array.dtype}, expected floats or integers")
        return array
    if hasattr(array, "__dlpack__"):
        if array.__dlpack_device__()[0] != 1:
            raise ValueError(f"{name}: found a tensor that is not on the CPU")
        return array
    raise TypeError(f"{name}: found {type(array).__name__}, expected a tensor of torch, numpy or another kind with __dlpack__")


def given_or_none(name: str, array: Optional[Any]) -> Optional[Any]:
    return None if array is None else given(name, array)


def empty(like: Any, shape: Sequence[int], is_f32: bool = False) -> Any:
    """A new tensor of the kind of `like`: of its type, or f32."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(*shape, dtype=torch.float32 if is_f32 else like.dtype)
    dtype = numpy.asarray(like).dtype if not is_f32 else numpy.float32
    return numpy.empty(tuple(shape), dtype=dtype)


_codes: Dict[Any, Tuple[int, int]] = {}


def _fill_codes() -> Dict[Any, Tuple[int, int]]:
    """DLPack's type code and the bits of the types of torch that are taken. Bytes are bytes, whatever they stand for."""
    torch = sys.modules["torch"]
    names = {"float32": (2, 32), "float16": (2, 16), "bfloat16": (4, 16), "float64": (2, 64), "int32": (0, 32), "int64": (0, 64),
             "uint8": (1, 8), "int8": (1, 8), "float8_e4m3fn": (1, 8)}
    _codes.update({getattr(torch, name): code for name, code in names.items() if hasattr(torch, name)})
    return _codes
