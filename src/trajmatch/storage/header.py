"""The header of a tensor file: kind, version, metadata, checksums, and where each tensor lies.

It is a safetensors header (JSON) with further entries under `__metadata__`: a digest of the header
itself, the kind of file, its format version, free metadata, the checksum of every row and the name
of the checksum.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import FileFormatError
from trajmatch.storage.checksum import CHECKSUMS, Checksum

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
MEND = "restore it from a copy, or delete it and make it again"
_DIGEST = 32  # hex digits
# The digest is at a fixed place, so it covers every other byte of the header as written.
_PREFIX = b'{"__metadata__":{"digest":"'


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the file, in bytes from its beginning, and its rows' checksums."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    checksums: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The contents of a verified header."""

    metadata: dict[str, Any]
    entries: dict[str, Entry]
    checksum: Checksum


def pack_header(own: Mapping[str, str], entries: Mapping[str, Any]) -> bytes:
    """The first bytes of a file: `own` entries, with a digest, and those of safetensors."""
    metadata = {"digest": "0" * _DIGEST, **own}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digested = _PREFIX + _header_digest(header) + header[len(_PREFIX) + _DIGEST :]
    return len(header).to_bytes(8, "little") + digested


def unpack_header(path: Path, header: bytes, size: int, *, kind: str, version: int) -> Header:
    """Verify the header of a file of `size` bytes. Errors are those of `open_tensors`."""
    metadata, checksum, rows, entries = _split_header(path, header, kind, version)
    expected = 8 + len(header)
    try:
        parsed = {name: _entry(entries[name], rows[name], expected) for name in entries}
        for start, stop in sorted((entry.start, entry.stop) for entry in parsed.values()):
            if start != expected:
                raise ValueError(f"a gap or overlap at byte {expected}")
            expected = stop
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} has an inconsistent header ({error}); {MEND}") from error
    if size != expected:
        raise FileFormatError(
            f"{path} has {size} bytes where its header says {expected}: it is "
            f"{'truncated' if size < expected else 'altered'}; {MEND}"
        )
    return Header(metadata, parsed, checksum)


def row_layout(shape: Sequence[int], dtype: torch.dtype) -> tuple[int, int]:
    """How many checksums a tensor has, and how many bytes each covers.

    Examples:
        >>> row_layout((51, 1000), torch.float32), row_layout((6,), torch.int64)
        ((51, 4000), (1, 48))
    """
    if len(shape) < 2:
        return 1, math.prod(shape) * dtype.itemsize
    return shape[0], math.prod(shape[1:]) * dtype.itemsize


def _split_header(
    path: Path, header: bytes, kind: str, version: int
) -> tuple[dict[str, Any], Checksum, dict[str, Any], dict[str, Any]]:
    """Metadata, checksum function, checksums by tensor, and safetensors' entries of a header.

    Raises FileFormatError unless it is of trajmatch, of `kind`, at most `version` and unaltered.
    """
    try:
        entries = json.loads(header)
        own = entries.pop("__metadata__", {})
        found_kind, found_version = own.get("kind"), own.get("version")
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise FileFormatError(f"{path} has an unreadable header; {MEND}") from error
    if not header.startswith(_PREFIX) or not isinstance(found_kind, str):
        raise FileFormatError(
            f"{path} was not written by trajmatch, or its header was altered; give a {kind} file "
            f"of trajmatch, or {MEND}"
        )
    if found_kind != kind:
        raise FileFormatError(f"{path} holds {found_kind!r}, not '{kind}'; give a {kind} file")
    # The version before the digest, which a newer format may compute differently.
    number = int(found_version) if re.fullmatch("[0-9]{1,9}", str(found_version)) else -1
    if number > version:
        raise FileFormatError(
            f"{path} was written by a newer trajmatch (format {found_version}, this one reads up "
            f"to {version}); upgrade trajmatch"
        )
    if header[len(_PREFIX) : len(_PREFIX) + _DIGEST] != _header_digest(header):
        raise FileFormatError(f"{path} has an altered header (its digest differs); {MEND}")
    try:
        rows, metadata = json.loads(own["rows"]), json.loads(own["metadata"])
        if number < 0 or not isinstance(metadata, dict) or set(rows) != set(entries):
            raise ValueError("version, metadata or rows are not what they must be")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} has an inconsistent header ({error}); {MEND}") from error
    checksum = str(own.get("checksum", "crc32"))  # the first files do not name theirs
    if checksum not in CHECKSUMS:
        raise FileFormatError(
            f"{path} was written by a newer trajmatch (checksum {checksum!r}, this one reads "
            f"{', '.join(CHECKSUMS)}); upgrade trajmatch"
        )
    return metadata, CHECKSUMS[checksum], rows, entries


def _entry(raw: dict[str, Any], checksums: list[int], base: int) -> Entry:
    dtype, shape = DTYPES[raw["dtype"]], raw["shape"]
    start, stop = raw["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("sizes and offsets must be whole numbers")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{stop - start} bytes for shape {shape}")
    if len(checksums) != row_layout(shape, dtype)[0]:
        raise ValueError(f"{len(checksums)} checksums for shape {shape}")
    return Entry(dtype, tuple(shape), base + start, base + stop, tuple(checksums))


def _header_digest(header: bytes) -> bytes:
    """Hex digest of the whole header except the digest itself."""
    digest = hashlib.blake2b(len(header).to_bytes(8, "little"), digest_size=_DIGEST // 2)
    digest.update(header[: len(_PREFIX)])
    digest.update(header[len(_PREFIX) + _DIGEST :])
    return digest.hexdigest().encode()
