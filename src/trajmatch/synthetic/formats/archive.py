"""Files of torch and NumPy: zip archives whose entries have checksums, which torch does not
verify."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import FileFormatError
from trajmatch.storage.files import atomic_write

_MEND = "copy it again from where it was written, or write it again"
_RECORD = 22
"""Bytes of the record that ends an archive."""


def verify_archive(path: Path) -> bool:
    """Verify number and checksums of the entries of a zip archive; whether the file is one at all.

    Reads the file once, 1 GB a second. Raises FileFormatError for an entry that was altered, and
    where `path` is no regular file; the zip module's own errors for a damaged archive.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() else "not there"
        raise FileFormatError(f"{path} is {what}; give the path of a file")
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        damaged, count = archive.testzip(), len(archive.infolist())
    if damaged is not None:
        raise FileFormatError(
            f"{path} was altered: {damaged!r} in it does not have the checksum it was written "
            f"with; {_MEND}"
        )
    written = _entries_written(path)
    if written not in (None, count):
        raise FileFormatError(f"{path} was altered: {count} of {written} entries are left; {_MEND}")
    return True


def _entries_written(path: Path) -> int | None:
    """What the archive's last record says, which zipfile does not compare; None where that cannot
    be told: with a comment after it, or more than 65,534 entries."""
    with path.open("rb") as file:
        file.seek(-_RECORD, os.SEEK_END)
        record = file.read()
    count = int.from_bytes(record[10:12], "little")
    return count if record.startswith(b"PK\x05\x06") and count < 0xFFFF else None


def read_pt(path: Path) -> Any:
    """Tensors, numbers and lists of them that `torch.save` wrote, on the CPU.

    Tensors are mapped from the file and read on use, so a buffer of 10 GB does not need 10 GB of
    memory. (Files older than torch 1.6 are read whole.)

    NumPy numbers and arrays are read as `NumpyValue`, without their values.

    Raises FileFormatError for a file that is missing, damaged or altered, that holds sparse or
    quantized tensors, or any other Python object, because unpickling one could run code.
    """
    try:
        mapped = verify_archive(path)
        with torch.serialization.safe_globals(_STAND_INS):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileFormatError:
        raise
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path} is not a plain torch file: it holds more than tensors, numbers and lists, or "
            "it is damaged; such files may run code when they are read, so it was not"
        ) from error
    except Exception as error:  # the type depends on where torch fails
        lines = (getattr(error, "strerror", None) or str(error)).splitlines()
        why = lines[0] if lines else type(error).__name__
        raise FileFormatError(
            f"cannot read {path} ({why}); give a whole file that torch.save wrote"
        ) from error
    if not _is_plain(value):
        raise FileFormatError(
            f"{path} holds sparse or quantized tensors; write them with .to_dense() "
            "or .dequantize()"
        )
    return value


def save_pt(path: Path, value: Any) -> None:
    """`torch.save`, atomically. Equal values give equal bytes: given a path, torch would name the
    archive's entries by it."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.save(value, file)


class NumpyValue:
    """Stand-in for a NumPy number or array in a pickle, which nothing here needs: its arguments are
    dropped, and no code of NumPy runs."""

    def __init__(self, *values: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY = ("multiarray.scalar", "multiarray._reconstruct")
_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *(
        (NumpyValue, f"{module}.{name}")
        for module in ("numpy.core", "numpy._core")
        for name in _NUMPY
    ),
    (NumpyValue, "numpy.dtype"),
    (NumpyValue, "numpy.ndarray"),
]
"""For torch's reader of plain values: published results hold accuracies beside their tensors."""


def _is_plain(value: object) -> bool:
    """Whether all tensors in nested lists, tuples and dicts are dense and in memory or mapped: none
    sparse, quantized, nested or without data."""
    visited: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            dense = value.layout == torch.strided and not value.is_quantized
            if not dense or value.is_nested or value.device.type != "cpu":
                return False
        elif isinstance(value, (list, tuple, dict)) and id(value) not in visited:
            visited.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return True
