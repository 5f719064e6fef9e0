"""Pickles of plain values and arrays of bytes, read without running any code in them.

A pickle may name any function and call it with any arguments. The few names that an array of uint8
needs are replaced here by stand-ins that build one from its bytes, for files of Python 2 and of
every version of NumPy; any other name is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmatch.data.sources.arrays import one_line
from trajmatch.errors import DataError


def unpickle(data: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle, with its keys as text.

    A str of Python 2 is returned as bytes (see `text`). Raises DataError, which names `where` (the
    file), for a pickle that is truncated, foreign, or names any other function.
    """
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__} and no dictionary")
        return {text(key): _plain(value) for key, value in found.items()}
    except Exception as error:  # on foreign bytes the reader raises many kinds
        raise DataError(
            f"cannot read {where} ({one_line(error)}); it is damaged or another file than its "
            "name says: download it again"
        ) from error


def text(value: Any) -> str:
    """A string of Python 2 or 3 as str. Raises ValueError for anything else."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"it holds a {type(value).__name__} where a text should be")
    return value


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"it calls {module}.{name}, which no data set needs")
        return _STAND_INS[module, name]


class _Pickled:
    """Stand-in for the results of NumPy's _reconstruct and dtype; its state arrives afterwards."""

    def __init__(self, is_array: bool) -> None:
        self.is_array = is_array
        self.array: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        if self.is_array:  # the state of a dtype holds byte order and the like, unused for uint8
            _, shape, dtype, fortran, values = state
            if not isinstance(dtype, _Pickled) or not isinstance(values, bytes):
                raise ValueError("it holds an array of something else than bytes")
            flat = np.frombuffer(values, np.uint8)
            self.array = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> _Pickled:
    return _Pickled(is_array=True)


def _dtype(name: Any, align: Any, copy: Any) -> _Pickled:
    if text(name) not in ("u1", "|u1"):
        raise ValueError(f"it holds an array of '{text(name)}' instead of 'u1'")
    return _Pickled(is_array=False)


def _encode(characters: Any, codec: Any) -> bytes:
    """Bytes as Python 3 writes them in the pickle protocols of Python 2."""
    if codec != "latin1":
        raise ValueError(f"it holds bytes encoded as '{codec}'")
    return text(characters).encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


def _plain(value: Any) -> Any:
    return value.array if isinstance(value, _Pickled) else value
