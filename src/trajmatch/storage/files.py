"""Tensor and JSON files, written atomically and verified on every read.

Tensors are stored as safetensors (any safetensors reader opens them) with further entries in the
header: the kind of file, its format version, free metadata, one checksum per row of every tensor,
and a digest of the header. So one row is read and verified without the rest: two rows of a 65 MB
trajectory take 0.15 ms.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import FileFormatError, SettingError, suggest
from trajmatch.storage.checksum import CHECKSUMS, WRITTEN
from trajmatch.storage.header import (
    DTYPES,
    MEND,
    Entry,
    Header,
    pack_header,
    row_layout,
    unpack_header,
)
from trajmatch.types import Shaped, Tensor

_CODES = {dtype: code for code, dtype in DTYPES.items()}
DEPTH = 100
"""Levels of objects and lists that a JSON file may have."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; after the block it is synced and renamed to `path`.

    Missing parent folders are created. If the block raises, `path` is unchanged.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "new", "a.txt")
        >>> with atomic_write(path) as partial:
        ...     _ = partial.write_text("content")
        >>> path.read_text()
        'content'
        >>> folder.cleanup()
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        _sync(partial, os.O_RDWR)  # Windows syncs only what is open for writing
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        _sync(path.parent, os.O_RDONLY)


def partial_path(path: Path) -> Path:
    """A new name beside `path`, for what will be renamed to it when it is complete. What a killed
    process leaves under such a name is removed by `folder.sweep`.

    Examples:
        >>> partial_path(Path("run", "best")).match("run/best.*-*.partial")
        True
    """
    # Process ids repeat across containers that share a folder, hence the token.
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def finished_path(path: str) -> str:
    """What a name of `partial_path` stands for; any other path as it is.

    Examples:
        >>> finished_path("run/best.123-0a1b2c3d.partial"), finished_path("run/best")
        ('run/best', 'run/best')
    """
    return re.sub(r"\.\d+-[0-9a-f]+\.partial$", "", path)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. Non-finite numbers become null."""
    text = json.dumps(_finite(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as partial:
        # Paths may hold bytes that are not UTF-8; replaced this way they are JSON's own escapes.
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises FileFormatError if it is absent, unreadable, not JSON, or nested
    more than `DEPTH` levels deep."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} is not a readable JSON file ({error}); {MEND}") from error


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises ValueError for what is not JSON, and for more levels of objects and lists than `DEPTH`:
    whatever goes through the value afterwards may be recursive.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    else:
        if not nested_deeper(value, DEPTH):
            return value
    raise ValueError(f"nested more than {DEPTH} levels deep")


def nested_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists nest deeper than `levels`, found without recursion.

    Examples:
        >>> nested_deeper({"a": [1]}, 2), nested_deeper({"a": [1]}, 1)
        (False, True)
    """
    level = [value]
    for _ in range(levels + 1):
        level = [item for item in level if isinstance(item, Mapping | list | tuple)]
        if not level:
            return False
        inside = (one.values() if isinstance(one, Mapping) else one for one in level)
        level = [item for items in inside for item in items]
    return True


def save_tensors(
    path: Path,
    tensors: Mapping[str, Shaped[Tensor, "..."]],
    *,
    kind: str,
    version: int,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `tensors` to one safetensors file, atomically, with row checksums and a digest.

    `metadata` is any JSON object; non-finite numbers in it become null. Tensors that are not
    contiguous on the CPU are copied. Raises SettingError if there are no tensors, for a dtype that
    safetensors has no code for, and for the reserved name `__metadata__`.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "rows.safetensors")
        >>> save_tensors(path, {"rows": torch.eye(3)}, kind="example", version=1)
        >>> open_tensors(path, kind="example", version=1).rows("rows", 1)
        tensor([0., 1., 0.])
        >>> folder.cleanup()
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
        layout = row_layout(tensor.shape, tensor.dtype)
        rows[name] = [CHECKSUMS[WRITTEN](row) for row in _split_rows(block, *layout)]
        entries[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(block)],
        }
        offset += len(block)
        blocks.append(block)
    own = {
        "kind": kind,
        "version": str(version),
        "metadata": json.dumps(_finite(dict(metadata or {})), sort_keys=True),
        "checksum": WRITTEN,
        "rows": json.dumps(rows),
    }
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write(pack_header(own, entries))
        for block in blocks:
            file.write(block)


def open_tensors(path: Path, *, kind: str, version: int) -> TensorFile:
    """Open a file of `save_tensors`: reads and verifies its header, not its tensors.

    Raises FileFormatError, with the path and the mend, when the file is missing, truncated, altered
    in its header, not of trajmatch, of another kind, or of a version above `version`.
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
                    f"{path} ({size} bytes) is truncated, altered or not safetensors; {MEND}"
                )
            header = file.read(length)
    except OSError as error:
        raise FileFormatError(
            f"cannot read {kind} file {path} ({error.strerror}); give the path of an existing one"
        ) from error
    return TensorFile(path, unpack_header(path, header, size, kind=kind, version=version))


class TensorFile:
    """Tensors of one file, read on request.

    There is no open descriptor, mapping or data behind it, only the header. Every read verifies its
    rows' checksums and raises FileFormatError when one differs.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.metadata = header.metadata
        self._entries = header.entries
        self._checksum = header.checksum

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def read(self, name: str) -> Shaped[Tensor, "..."]:
        """The whole tensor in its stored dtype, on the CPU."""
        entry = self._entry(name)
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        self._read(name, [range(len(entry.checksums))], tensor)
        return tensor

    def rows(
        self, name: str, index: int | Sequence[int], out: Shaped[Tensor, "..."] | None = None
    ) -> Shaped[Tensor, "..."]:
        """`tensor[index]` alone, of one row or several: only their bytes are read and verified.
        Needs two dimensions.

        out: a contiguous CPU tensor of the shape and dtype of `tensor[index]` to read into and
            return; it is overwritten also when a checksum differs. None: new memory, whose pages
            may cost the system several times as long as the reading.

        Raises SettingError for a row that does not exist and an `out` that does not fit.
        """
        entry = self._entry(name)
        present = range(entry.shape[0] if len(entry.shape) > 1 else 0)
        indices = (index,) if isinstance(index, int) else index
        for i in indices:
            if i not in present:
                raise SettingError(
                    f"'{name}' in {self.path} has shape {list(entry.shape)}, so no row {i}; use "
                    "0 <= row < its first dimension, or read() for fewer than two dimensions"
                )
        shape = entry.shape[1:]
        if not isinstance(index, int):
            shape = (len(indices), *shape)
        if out is None:
            out = torch.empty(shape, dtype=entry.dtype)
        elif (out.shape, out.dtype) != (shape, entry.dtype) or not out.is_contiguous():
            raise SettingError(
                f"a row of '{name}' in {self.path} does not fit {out.dtype} {list(out.shape)}; "
                f"give a contiguous tensor of {entry.dtype} {list(shape)}"
            )
        self._read(name, [range(i, i + 1) for i in indices], out)
        return out

    def verify(self) -> None:
        """Read and verify every byte. Memory: the largest row."""
        for name, entry in self._entries.items():
            if len(entry.shape) < 2:
                self.read(name)
            else:
                row = torch.empty(entry.shape[1:], dtype=entry.dtype)
                for i in range(entry.shape[0]):
                    self.rows(name, i, row)

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise SettingError(f"{self.path} has no '{name}'; {suggest(name, self._entries)}")
        return self._entries[name]

    def _read(self, name: str, parts: Sequence[range], out: Tensor) -> None:
        """Read these ranges of rows into `out`, one after another, and verify every row."""
        # Not mapped: the pages of a file that came from the disk are small, and to enter them in
        # the page table takes as long as copying; mapped pages count as resident, and a file cut
        # short ends the process. Not left open: the descriptors of some hundred experts would
        # exceed the usual limit.
        entry, block = self._entries[name], _bytes_of(out)
        _, size = row_layout(entry.shape, entry.dtype)
        try:
            with open(self.path, "rb", buffering=0) as file:
                for rows in parts:
                    part, block = block[: len(rows) * size], block[len(rows) * size :]
                    file.seek(entry.start + rows.start * size)
                    if not _filled(file, part):
                        raise FileFormatError(f"{self.path} is truncated; {MEND}")
                    # Before the next range takes their place in the processor's cache.
                    self._verify(name, rows, part)
        except OSError as error:
            raise FileFormatError(f"cannot read {self.path} ({error.strerror}); {MEND}") from error

    def _verify(self, name: str, rows: range, block: memoryview) -> None:
        """Compare the checksums of these rows, read into `block`, with those of the header."""
        checksums, size = self._entries[name].checksums, len(block) // max(1, len(rows))
        for row, part in zip(rows, _split_rows(block, len(rows), size), strict=True):
            if self._checksum(part) != checksums[row]:
                raise FileFormatError(
                    f"row {row} of '{name}' in {self.path} does not have the checksum it was "
                    f"written with: the file was altered or the disk failed; {MEND}"
                )


def _filled(file: io.FileIO, block: memoryview) -> bool:
    """Read into all of `block`; False where the file ends before."""
    done = 0
    # The system may read less than it was asked for: Linux at most 2 GB at a time.
    while done < len(block) and (count := file.readinto(block[done:])):
        done += count
    return done == len(block)


def _split_rows(block: memoryview, count: int, size: int) -> list[memoryview]:
    return [block[i * size : (i + 1) * size] for i in range(count)]


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable and not copied."""
    block: memoryview = tensor.reshape(-1).view(torch.uint8).numpy().data
    return block


def _finite(obj: Any) -> Any:
    """`obj` after a round trip through JSON, with None for every non-finite number."""
    return json.loads(json.dumps(obj), parse_constant=lambda _: None)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
