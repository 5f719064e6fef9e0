"""Folders and archives through one interface: their entries, and the bytes of each file."""

from __future__ import annotations

import abc
import importlib
import os
import re
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

from trajmatch.data.cache import cache_path
from trajmatch.errors import DataError

SPLITS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": ("validation", "valid", "val", "dev", "validationset", "validset", "valset", "devset"),
    "test": ("test", "testing", "testset"),
}
"""Names of each split; case and signs do not matter (`Training_Set`)."""

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Endings of archives that are read without unpacking."""

_ROLES = {name: role for role, names in SPLITS.items() for name in names}
_LARGEST_FILE = 1 << 28  # bytes; a training picture is about five orders of magnitude smaller
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}


def split_role(name: object) -> str | None:
    """`train`, `val` or `test` for one of its names in SPLITS; None for any other.

    Examples:
        >>> split_role("Training"), split_role("dev"), split_role("train_station")
        ('train', 'val', None)
    """
    return _ROLES.get(re.sub(r"[\W_]+", "", str(name).lower()))


def role_within(name: str) -> str | None:
    """The split that one word of a name stands for; None where no word does, or words of several.

    Examples:
        >>> role_within("Train_png"), role_within("seg_test"), role_within("train-test")
        ('train', 'test', None)
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    roles = {role for role in map(split_role, words) if role}
    return roles.pop() if len(roles) == 1 else None


def archive_stem(path: Path) -> str:
    """The name of an archive without its ending: `pets` of pets.tar.gz."""
    ending = max((e for e in ARCHIVES if path.name.lower().endswith(e)), key=len, default="")
    return path.name[: -len(ending)] if ending and path.name != ending else path.stem


def read_regular(path: Path) -> bytes:
    """The bytes of a file. Raises DataError for what is no regular file (opening a pipe would
    wait for ever), for one that is too large for a picture, and for one that cannot be read."""
    require_regular(path)
    try:
        found = os.stat(path)
        if found.st_size > _LARGEST_FILE:
            raise DataError(
                f"cannot read {path} (it has {found.st_size / 1e6:,.0f} MB, too many for a "
                "picture); remove it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from error


def require_regular(path: Path) -> None:
    """Refuse what is there and no regular file, before it is opened. Raises DataError."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # absent, which reading reports
    if not stat.S_ISREG(mode):
        raise DataError(f"cannot read {path} (it is {_kind(mode)}); remove it")


def _kind(mode: int) -> str:
    """What a path that is no regular file is."""
    kinds = {
        stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return f"{kinds.get(stat.S_IFMT(mode), 'a special file')}, not a regular file"


@dataclass(frozen=True)
class Listed:
    """Encoded pictures of one split: the name that each is read by, and its label."""

    names: list[str]
    labels: list[int]

    def take(self, indices: Sequence[int]) -> Listed:
        """Those at `indices`, in that order."""
        return Listed([self.names[i] for i in indices], [self.labels[i] for i in indices])


class Tree(abc.ABC):
    """A folder or an archive. Names are relative, with slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly in `prefix` ("" or ending in a slash)."""

    @abc.abstractmethod
    def files(self, prefix: str, only: Sequence[str] | None = None) -> list[str]:
        """Full names of all files at any depth below `prefix`; only: below these entries of it."""

    @abc.abstractmethod
    def beside(self, prefix: str) -> list[str]:
        """Full names of the files directly in `prefix`."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes; called from several threads."""

    @abc.abstractmethod
    def stamp(self, name: str) -> list[int]:
        """Numbers that change when the file changes."""

    def cache_place(
        self, splits: dict[str, Listed], size: int | None, *further: str
    ) -> Path | None:
        """The cache file for these pictures in this size; None without a cache folder.

        further: what else determines the decoded images.
        """
        files = [[n, *self.stamp(n)] for listed in splits.values() for n in listed.names]
        key = [str(self.path.absolute()), size, files, *further]
        return cache_path(archive_stem(self.path), key)

    def close(self) -> None:
        return None


class _Folder(Tree):
    def folders(self, prefix: str) -> list[str]:
        with os.scandir(self.path / prefix) as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def files(self, prefix: str, only: Sequence[str] | None = None) -> list[str]:
        # Links to split and class folders are followed, deeper ones not: they could form a cycle.
        with os.scandir(self.path / prefix) as entries:
            names = []
            for entry in entries:
                if only is not None and entry.name not in only:
                    continue
                if not entry.is_dir():
                    names.append(prefix + entry.name)
                    continue
                for root, _, files in os.walk(entry.path, onerror=_refuse):
                    inner = Path(root).relative_to(self.path).as_posix()
                    names += [f"{inner}/{file}" for file in files]
        return names

    def beside(self, prefix: str) -> list[str]:
        with os.scandir(self.path / prefix) as entries:
            return [prefix + entry.name for entry in entries if not entry.is_dir()]

    def read(self, name: str) -> bytes:
        return read_regular(self.path / name)

    def stamp(self, name: str) -> list[int]:
        try:
            found = os.stat(self.path / name)
            return [found.st_size, found.st_mtime_ns]
        except OSError:  # a dangling link, which `read` reports
            return [-1, -1]


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed; passing over it would drop its pictures without a word."""
    raise error


class _Archive(Tree):
    """An archive, read in place: nothing is written under the names of its members."""

    @property
    @abc.abstractmethod
    def members(self) -> list[tuple[str, Any]]:
        """Names and entries, as they are stored."""

    @cached_property
    def entries(self) -> dict[str, Any]:
        """Entries by name, folders' names ending in a slash.

        The last of equal names counts, as when unpacking; names that climb (`../`) or begin at the
        root are left out.
        """
        entries = {}
        for name, entry in self.members:
            parts = PurePosixPath(name).parts  # without "./"
            if parts and parts[0] != "/" and ".." not in parts:
                entries["/".join(parts) + ("/" if name.endswith("/") else "")] = entry
        return entries

    def folders(self, prefix: str) -> list[str]:
        below = (n.removeprefix(prefix) for n in self.entries if n.startswith(prefix))
        return list({name.split("/")[0]: None for name in below if "/" in name})

    def files(self, prefix: str, only: Sequence[str] | None = None) -> list[str]:
        names = [n for n in self.entries if n.startswith(prefix) and not n.endswith("/")]
        if only is None:
            return names
        wanted = set(only)
        return [n for n in names if n.removeprefix(prefix).split("/")[0] in wanted]

    def beside(self, prefix: str) -> list[str]:
        return [n for n in self.files(prefix) if "/" not in n.removeprefix(prefix)]

    def read(self, name: str) -> bytes:
        entry = self.entries.get(name)
        if entry is None:
            raise DataError(f"cannot read {name} in {self.path} (there is no such file)")
        try:
            size = self.size(entry)
            if size > _LARGEST_FILE:
                raise ValueError(f"it unpacks to {size / 1e6:,.0f} MB")
            return self.content(entry)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
            raise DataError(f"cannot read {name} in {self.path} ({error}); replace it") from error
        except RuntimeError as error:  # a password, or an unknown compression method
            raise DataError(
                f"cannot read {name} in {self.path} ({error}); unpack it to a folder and give that"
            ) from error

    @abc.abstractmethod
    def size(self, entry: Any) -> int:
        """Bytes of a member, unpacked."""

    @abc.abstractmethod
    def content(self, entry: Any) -> bytes:
        """The bytes of a member."""


class _Zip(_Archive):
    @cached_property
    def zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{self.path} is not a readable zip ({error}); give a folder, or an archive, of "
                "class folders"
            ) from error

    @property
    def members(self) -> list[tuple[str, Any]]:
        return [(entry.filename, entry) for entry in self.zip.infolist()]

    def size(self, entry: zipfile.ZipInfo) -> int:
        return entry.file_size

    def content(self, entry: zipfile.ZipInfo) -> bytes:
        return self.zip.read(entry)

    def stamp(self, name: str) -> list[int]:
        entry = self.entries.get(name)
        return [-1, -1] if entry is None else [entry.file_size, entry.CRC]

    def close(self) -> None:
        if "zip" in self.__dict__:
            self.zip.close()


class _Tar(_Archive):
    """A compressed one is unpacked once, as one unnamed temporary file: in a compressed stream
    every step back begins anew."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.Lock()

    @cached_property
    def file(self) -> IO[bytes]:
        file: IO[bytes] = self.path.open("rb")
        start = file.read(6)
        file.seek(0)
        module = next((m for magic, m in _COMPRESSED.items() if start.startswith(magic)), None)
        if module is None:
            return file
        file.close()
        unpacked: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        try:
            with importlib.import_module(module).open(self.path) as stream:
                shutil.copyfileobj(stream, unpacked, 1 << 20)
        except BaseException:
            unpacked.close()
            raise
        unpacked.seek(0)
        return unpacked

    @cached_property
    def members(self) -> list[tuple[str, Any]]:
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                return [(m.name + ("/" if m.isdir() else ""), m) for m in tar.getmembers()]
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{self.path} is not a readable tar ({error}); give a folder, or an archive, of "
                "class folders"
            ) from error
        except Exception as error:  # LZMAError and ImportError of modules that may be absent
            raise DataError(f"{self.path} cannot be unpacked ({error}); unpack it first") from error

    def size(self, entry: tarfile.TarInfo) -> int:
        return entry.size

    def content(self, entry: tarfile.TarInfo) -> bytes:
        if not entry.isreg() or entry.issparse():
            raise ValueError("it is a link or a special file, not a regular one")
        with self._lock:
            self.file.seek(entry.offset_data)
            data = self.file.read(entry.size)
        if len(data) < entry.size:
            raise EOFError("the archive ends before it")
        return data

    def stamp(self, name: str) -> list[int]:
        entry, archive = self.entries.get(name), os.stat(self.path)
        if entry is None:
            return [-1, -1]
        return [entry.size, int(entry.mtime), archive.st_size, archive.st_mtime_ns]

    def close(self) -> None:
        if "file" in self.__dict__:
            self.file.close()


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """The folder or archive at `path`. Raises DataError when it is neither or cannot be read."""
    if not (path.is_dir() or path.is_file()):
        raise DataError(
            f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}); give one of them"
        )
    packed = path.name.lower().endswith(ARCHIVES[1:])
    tree = _Folder(path) if path.is_dir() else _Tar(path) if packed else _Zip(path)
    try:
        yield tree
    except OSError as error:
        raise DataError(f"cannot read {path} ({error}); check that you may read it") from error
    finally:
        tree.close()
