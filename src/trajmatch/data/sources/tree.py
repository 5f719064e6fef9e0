"""Folders and .zip files through one interface: their entries, and the bytes of each file."""

from __future__ import annotations

import abc
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trajmatch.data.cache import cache_path
from trajmatch.errors import DataError

_LARGEST_FILE = 1 << 28  # bytes; a training picture is about five orders of magnitude smaller


@dataclass(frozen=True)
class Listed:
    """Encoded pictures of one split: the name that each is read by, and its label."""

    names: list[str]
    labels: list[int]

    def take(self, indices: Sequence[int]) -> Listed:
        """Those at `indices`, in that order."""
        return Listed([self.names[i] for i in indices], [self.labels[i] for i in indices])


class Tree(abc.ABC):
    """A folder or a .zip. Names are relative, with slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly in `prefix` ("" or ending in a slash)."""

    @abc.abstractmethod
    def files(self, prefix: str, only: Sequence[str] | None = None) -> list[str]:
        """Full names of all files at any depth below `prefix`; only: below these entries of it."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes; called from several threads."""

    @abc.abstractmethod
    def stamp(self, name: str) -> list[int]:
        """Numbers that change when the file changes."""

    def cache_place(self, splits: dict[str, Listed], size: int | None) -> Path | None:
        """The cache file for these pictures in this size; None without a cache folder."""
        files = [[n, *self.stamp(n)] for listed in splits.values() for n in listed.names]
        return cache_path(self.path.stem, [str(self.path.absolute()), size, files])

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
                for root, _, files in os.walk(entry.path) if entry.is_dir() else ():
                    inner = Path(root).relative_to(self.path).as_posix()
                    names += [f"{inner}/{file}" for file in files]
        return names

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.path / name} ({error.strerror})") from error

    def stamp(self, name: str) -> list[int]:
        try:
            stat = os.stat(self.path / name)
            return [stat.st_size, stat.st_mtime_ns]
        except OSError:  # a dangling link, which `read` reports
            return [-1, -1]


class _Zip(Tree):
    @cached_property
    def zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{self.path} is not a readable zip ({error}); give a folder, or a .zip, of "
                "class folders"
            ) from error

    @cached_property
    def entries(self) -> dict[str, zipfile.ZipInfo]:
        # By name, so that the last of equal names counts, as when unpacking.
        return {entry.filename: entry for entry in self.zip.infolist()}

    def folders(self, prefix: str) -> list[str]:
        below = (n.removeprefix(prefix) for n in self.entries if n.startswith(prefix))
        return list({name.split("/")[0]: None for name in below if "/" in name})

    def files(self, prefix: str, only: Sequence[str] | None = None) -> list[str]:
        names = [n for n in self.entries if n.startswith(prefix) and not n.endswith("/")]
        if only is None:
            return names
        wanted = set(only)
        return [n for n in names if n.removeprefix(prefix).split("/")[0] in wanted]

    def read(self, name: str) -> bytes:
        try:
            if self.entries[name].file_size > _LARGEST_FILE:
                raise ValueError(f"it unpacks to {self.entries[name].file_size / 1e6:,.0f} MB")
            return self.zip.read(self.entries[name])
        except KeyError:
            raise DataError(f"cannot read {name} in {self.path} (there is no such file)") from None
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
            raise DataError(f"cannot read {name} in {self.path} ({error}); replace it") from error
        except RuntimeError as error:  # a password, or an unknown compression method
            raise DataError(
                f"cannot read {name} in {self.path} ({error}); unpack it to a folder and give that"
            ) from error

    def stamp(self, name: str) -> list[int]:
        entry = self.entries.get(name)
        return [-1, -1] if entry is None else [entry.file_size, entry.CRC]

    def close(self) -> None:
        if "zip" in self.__dict__:
            self.zip.close()


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """The folder or .zip at `path`. Raises DataError when it is neither or cannot be read."""
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"{path} is neither a folder nor a .zip file; give one of them")
    tree = _Folder(path) if path.is_dir() else _Zip(path)
    try:
        yield tree
    except OSError as error:
        raise DataError(f"cannot read {path} ({error}); check that you may read it") from error
    finally:
        tree.close()
