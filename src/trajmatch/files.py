"""Files that appear whole or not at all, and say so when a single bit of them has changed.

Tensors are kept as plain safetensors (any safetensors reader opens them), with our own entries in
the header: what kind of file it is, its format version, free metadata, one checksum per row of
every tensor, and a digest of the header itself. So one row can be read and trusted without reading
the rest: that is how two rows of a 65 MB trajectory are drawn in a millisecond.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import FileFormatError, SettingError, suggest
from trajmatch.types import Shaped, Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_DIGEST = 32  # hex digits
# The digest stands at a fixed place, so it can cover every other byte of the header as written.
_PREFIX = b'{"__metadata__":{"digest":"'
_MEND = "restore it from a copy, or delete it and make it again"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it takes `path`'s place, synced to disk.

    Missing parent folders are made. When the block raises, `path` is as it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids repeat across containers that share a folder, hence the token.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        _sync(path.parent)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Numbers that are not finite become null."""
    text = json.dumps(_finite(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as partial:
        # A path may hold bytes that are not UTF-8; replaced so, they are JSON's own escapes.
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Read a JSON file; FileFormatError when it is absent, unreadable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not a readable JSON file ({error}); {_MEND}") from error


def save_tensors(
    path: Path,
    tensors: Mapping[str, Shaped[Tensor, "..."]],
    *,
    kind: str,
    version: int,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `tensors` to one safetensors file, atomically, with row checksums and a digest.

    `metadata` is anything JSON can hold; non-finite numbers in it become null. Needs no second copy
    in memory for contiguous CPU tensors; others are copied. Raises SettingError for no tensors, a
    dtype safetensors has no code for, or the reserved name `__metadata__`.
    """
    if not tensors:
        raise SettingError(f"{path} would hold no tensors; give at least one to save")
    # Widest first, as safetensors does, so that every tensor is aligned to its own element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {}
    rows: dict[str, list[int]] = {}
    blocks: list[memoryview] = []
    offset = 0
    for name in order:
        tensor = tensors[name].detach().cpu().contiguous()
        if tensor.dtype not in _CODES or name == "__metadata__":
            known = ", ".join(map(str, _CODES))
            raise SettingError(
                f"cannot save '{name}' of {tensor.dtype}; use another name or {known}"
            )
        block = _bytes_of(tensor)
        rows[name] = [zlib.crc32(row) for row in _split_rows(block, tensor.shape, tensor.dtype)]
        entries[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(block)],
        }
        offset += len(block)
        blocks.append(block)
    own = {
        "digest": "0" * _DIGEST,
        "kind": kind,
        "version": str(version),
        "metadata": json.dumps(_finite(dict(metadata or {})), sort_keys=True),
        "rows": json.dumps(rows),
    }
    header = json.dumps({"__metadata__": own, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = _header_digest(header)
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(_PREFIX + digest + header[len(_PREFIX) + _DIGEST :])
        for block in blocks:
            file.write(block)


def open_tensors(path: Path, *, kind: str, version: int) -> TensorFile:
    """Open a file of `save_tensors`: reads and checks its header, not its tensors.

    Raises FileFormatError, with the path and the mend, when the file is missing, truncated, altered
    in its header, not ours, of another kind, or of a version above `version`.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise FileFormatError(f"{path} is {what}; give a {kind} file of trajmatch")
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, 100_000_000):
                raise FileFormatError(
                    f"{path} ({size} bytes) is truncated, altered or not safetensors; {_MEND}"
                )
            header = file.read(length)
    except OSError as error:
        raise FileFormatError(
            f"cannot read {kind} file {path} ({error.strerror}); give the path of an existing one"
        ) from error
    metadata, rows, entries = _split_header(path, header, kind, version)
    try:
        parsed = {name: _entry(entries[name], rows[name], 8 + length) for name in entries}
        expected = 8 + length
        for start, stop in sorted((entry.start, entry.stop) for entry in parsed.values()):
            if start != expected:
                raise ValueError(f"a gap or overlap at byte {expected}")
            expected = stop
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} has an inconsistent header ({error}); {_MEND}") from error
    if size != expected:
        raise FileFormatError(
            f"{path} has {size} bytes where its header says {expected}: it is "
            f"{'truncated' if size < expected else 'altered'}; {_MEND}"
        )
    return TensorFile(path, metadata, parsed)


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies in the file, in bytes from its beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    crc: tuple[int, ...]


class TensorFile:
    """Tensors of one file, read when asked for.

    Holds no open descriptor, no mapping and no data: a thousand of these cost their headers. Every
    read checks its rows' checksums and raises FileFormatError when one fails.
    """

    def __init__(self, path: Path, metadata: dict[str, Any], entries: dict[str, _Entry]) -> None:
        self.path = path
        self.metadata = metadata
        self._entries = entries

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def read(self, name: str) -> Shaped[Tensor, "..."]:
        """The whole tensor, in the dtype it was stored in, on the CPU."""
        entry = self._entry(name)
        tensor = self._read(entry.shape, entry.dtype, entry.start)
        for i, row in enumerate(_split_rows(_bytes_of(tensor), entry.shape, entry.dtype)):
            self._check(name, entry, i, row)
        return tensor

    def rows(self, name: str, index: int) -> Shaped[Tensor, "..."]:
        """`tensor[index]` alone: only its bytes are read and checked. Needs two dimensions."""
        entry = self._entry(name)
        if len(entry.shape) < 2 or not 0 <= index < entry.shape[0]:
            raise SettingError(
                f"'{name}' in {self.path} has shape {list(entry.shape)}, so no row {index}; "
                "use 0 <= row < its first dimension, or read() for fewer than two dimensions"
            )
        _, size = _row_layout(entry.shape, entry.dtype)
        row = self._read(entry.shape[1:], entry.dtype, entry.start + index * size)
        self._check(name, entry, index, _bytes_of(row))
        return row

    def verify(self) -> None:
        """Read every byte and check it. Memory: the largest row."""
        for name, entry in self._entries.items():
            if len(entry.shape) < 2:
                self.read(name)
            else:
                for i in range(entry.shape[0]):
                    self.rows(name, i)

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise SettingError(f"{self.path} has no '{name}'; {suggest(name, self._entries)}")
        return self._entries[name]

    def _read(self, shape: tuple[int, ...], dtype: torch.dtype, start: int) -> Tensor:
        # Read into fresh memory rather than map: mapped pages would count as resident, and
        # descriptors of some hundred experts would exceed the usual limit.
        tensor = torch.empty(shape, dtype=dtype)
        block, done = _bytes_of(tensor), 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                while done < len(block):
                    got = file.readinto(block[done:])
                    if not got:
                        raise FileFormatError(f"{self.path} is truncated; {_MEND}")
                    done += got
        except OSError as error:
            raise FileFormatError(f"cannot read {self.path} ({error.strerror}); {_MEND}") from error
        return tensor

    def _check(self, name: str, entry: _Entry, row: int, block: memoryview) -> None:
        if zlib.crc32(block) != entry.crc[row]:
            raise FileFormatError(
                f"row {row} of '{name}' in {self.path} does not have the checksum it was written "
                f"with: the file was altered or the disk failed; {_MEND}"
            )


def _split_header(
    path: Path, header: bytes, kind: str, version: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Metadata, checksums and entries of a raw header, after checking whose and how old it is."""
    try:
        entries = json.loads(header)
        own = entries.pop("__metadata__", {})
        found_kind, found_version = own.get("kind"), own.get("version")
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise FileFormatError(f"{path} has an unreadable header; {_MEND}") from error
    if not header.startswith(_PREFIX) or not isinstance(found_kind, str):
        raise FileFormatError(
            f"{path} was not written by trajmatch, or its header was altered; give a {kind} file "
            f"of trajmatch, or {_MEND}"
        )
    if found_kind != kind:
        raise FileFormatError(f"{path} holds {found_kind!r}, not '{kind}'; give a {kind} file")
    # The version is asked before the digest: a newer format may compute that differently.
    number = int(found_version) if re.fullmatch("[0-9]{1,9}", str(found_version)) else -1
    if number > version:
        raise FileFormatError(
            f"{path} was written by a newer trajmatch (format {found_version}, this one reads up "
            f"to {version}); upgrade trajmatch"
        )
    if header[len(_PREFIX) : len(_PREFIX) + _DIGEST] != _header_digest(header):
        raise FileFormatError(f"{path} has an altered header (its digest differs); {_MEND}")
    try:
        rows, metadata = json.loads(own["rows"]), json.loads(own["metadata"])
        if number < 0 or not isinstance(metadata, dict) or set(rows) != set(entries):
            raise ValueError("version, metadata or rows make no sense")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path} has an inconsistent header ({error}); {_MEND}") from error
    return metadata, rows, entries


def _entry(found: dict[str, Any], crc: list[int], base: int) -> _Entry:
    dtype, shape = _DTYPES[found["dtype"]], found["shape"]
    start, stop = found["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError("sizes and offsets must be whole numbers")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{stop - start} bytes for shape {shape}")
    if len(crc) != _row_layout(shape, dtype)[0]:
        raise ValueError(f"{len(crc)} checksums for shape {shape}")
    return _Entry(dtype, tuple(shape), base + start, base + stop, tuple(crc))


def _row_layout(shape: Sequence[int], dtype: torch.dtype) -> tuple[int, int]:
    """How many checksums a tensor has and how many bytes each covers."""
    if len(shape) < 2:
        return 1, math.prod(shape) * dtype.itemsize
    return shape[0], math.prod(shape[1:]) * dtype.itemsize


def _split_rows(block: memoryview, shape: Sequence[int], dtype: torch.dtype) -> list[memoryview]:
    count, size = _row_layout(shape, dtype)
    return [block[i * size : (i + 1) * size] for i in range(count)]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable and not copied."""
    block: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return block


def _header_digest(header: bytes) -> bytes:
    """Hex digest of the whole header but the digest's own place."""
    digest = hashlib.blake2b(len(header).to_bytes(8, "little"), digest_size=_DIGEST // 2)
    digest.update(header[: len(_PREFIX)])
    digest.update(header[len(_PREFIX) + _DIGEST :])
    return digest.hexdigest().encode()


def _finite(obj: Any) -> Any:
    """`obj` as JSON would give it back, with null for every number that JSON cannot say."""
    return json.loads(json.dumps(obj), parse_constant=lambda _: None)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
