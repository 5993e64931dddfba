"""Arguments that are no tensors, checked: TypeError for another type, ValueError for another value, both naming the argument."""
import operator
from typing import Any, Optional

_LEAST, _MOST = 1.1754943508222875e-38, 3.4028234663852886e38  # of float32, without what it holds less exactly


def whole(name: str, value: Any, low: int, high: Optional[int] = None) -> int:
    """An integer from low to high."""
    try:
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: found {value!r}, expected an integer") from None
    if found < low or (high is not None and found > high):
        raise ValueError(f"{name}: found {found}, expected {low} " + ("or more" if high is None else f"to {high}"))
    return found


def number(name: str, value: Any) -> float:
    """A number: anything that float() takes but text."""
    try:
        if isinstance(value, (str, bytes, bytearray)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: found {value!r}, expected a number") from None


def scale(name: str, value: Any) -> float:
    """What scores are multiplied by: a positive number that float32 holds."""
    found = number(name, value)
    if not _LEAST <= found <= _MOST:
        raise ValueError(f"{name}: found {found}, expected a positive number that float32 holds")
    return found


def text(name: str, value: Any) -> str:
    """A str that has a UTF-8 form."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: found {value!r}, expected a str")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: found half a character ({value[error.start]!r} at {error.start}), expected text") from None
    return value
