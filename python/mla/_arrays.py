"""Tensors of any kind: torch's, numpy's, or whatever speaks DLPack. Torch is looked at only where it is loaded already."""
import sys
from typing import Any, Optional, Sequence

import numpy


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def given(name: str, array: Any) -> Any:
    """The tensor as the extension module takes it, without a copy. Raises TypeError or ValueError naming the argument."""
    if is_torch(array):
        torch = sys.modules["torch"]
        if array.device.type != "cpu":
            raise ValueError(f"{name}: found a tensor on {array.device}, expected one on the CPU")
        array = array.detach()
        return array.view(torch.uint8) if array.dtype in _torch_bytes(torch) else array
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
        return torch.empty(tuple(shape), dtype=torch.float32 if is_f32 else like.dtype)
    dtype = numpy.asarray(like).dtype if not is_f32 else numpy.float32
    return numpy.empty(tuple(shape), dtype=dtype)


def _torch_bytes(torch: Any) -> Sequence[Any]:
    return (torch.float8_e4m3fn, torch.int8)
