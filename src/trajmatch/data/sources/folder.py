"""A folder of class folders, or a .zip of one.

    train/<class>/<picture>   test/<class>/<picture>   val/<class>/<picture>

With train, test and perhaps val, each is what its name says. With train and val alone, val is the
TEST split, as in Imagenette and ImageNet, and a validation split is cut from train; the data set's
`note` says so. All may lie in one folder more. Classes are sorted by name, pictures by name within
their class. Dot files, __MACOSX and whatever has no picture's ending are passed over.
"""

from __future__ import annotations

import abc
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from trajmatch.data.cache import cache_path, keep, open_cached
from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.decode import SUFFIXES, decode_images
from trajmatch.errors import DataError, FileFormatError, SettingError, suggest

_LARGEST_FILE = 1 << 28  # bytes: a picture of ours is 5 orders of magnitude smaller
_VAL_IS_TEST = "val/ is the test split, as there is no test/; validation is cut from train/"


def load_folder(
    path: Path,
    *,
    size: int | None = None,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ImageDataset:
    """Read a folder or .zip as above; no validation split unless it has train, test and val.

    Pictures are decoded once and kept in the cache, for as long as no file's size or time of change
    differs: CIFAR-10 as JPEG takes half a minute, then a second. A zip is never unpacked to disk.
    `size` as in `load_data`. Raises DataError, with the file or folder at fault, for anything that
    is missing, empty, misnamed or unreadable.
    """
    if not (path.is_dir() or path.is_file()):
        raise DataError(f"{path} is neither a folder nor a .zip file; give one of them")
    tree = _Folder(path) if path.is_dir() else _Zip(path)
    try:
        place = cache_path(path.stem, [tree.stamp(), size]) if cache else None
        found = _cached(place)
        if found is None:
            listing = _list(tree)
            found = decode_images(listing.names, tree.read, size, progress), listing
            _keep(place, *found)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error}); check that you may read it") from error
    finally:
        tree.close()
    images, listing = found
    labels = torch.tensor(listing.labels)
    splits = {}
    for role, (start, stop) in listing.parts.items():
        part = images[start:stop]
        # A view of train may go when validation is cut from it; views of the others would keep all.
        splits[role] = Split(part if role == "train" else part.clone(), labels[start:stop])
    note = ""
    if "test" not in splits:
        splits["test"], note = splits.pop("val"), _VAL_IS_TEST
    name = path.stem if path.is_file() else path.resolve().name
    return ImageDataset(
        name, splits["train"], splits["test"], splits.get("val"), listing.classes, note
    )


@dataclass(frozen=True)
class _Listing:
    """Every picture with its label, split after split; where each split begins and ends."""

    names: list[str]
    labels: list[int]
    parts: dict[str, tuple[int, int]]
    classes: tuple[str, ...]


class _Tree(abc.ABC):
    """What a folder and a zip have in common. Names are relative, with slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abc.abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """Names of the folders directly in `prefix` ("" or ending in a slash)."""

    @abc.abstractmethod
    def files(self, prefix: str) -> list[str]:
        """All files at any depth below `prefix`, by full name."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """A file's bytes; called from several threads."""

    @abc.abstractmethod
    def stamp(self) -> Any:
        """Plain values that differ when any picture has been added, removed or changed."""

    def close(self) -> None:
        return None


class _Folder(_Tree):
    def folders(self, prefix: str) -> list[str]:
        with os.scandir(self.path / prefix) as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def files(self, prefix: str) -> list[str]:
        # Links to split and class folders are followed, deeper ones not: they could go in circles.
        with os.scandir(self.path / prefix) as entries:
            names = []
            for entry in entries:
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

    def stamp(self) -> Any:
        base, stamps = _base(self), []
        for role in _roles(self, base):
            for name in sorted(self.files(f"{base}{role}/")):
                try:
                    stat = os.stat(self.path / name)
                    stamps.append([name, stat.st_size, stat.st_mtime_ns])
                except OSError:  # a dangling link: reading it will tell, if it is a picture
                    stamps.append([name, -1, -1])
        return [str(self.path.absolute()), stamps]


class _Zip(_Tree):
    @cached_property
    def zip(self) -> zipfile.ZipFile:  # opened when needed: not for what is in the cache
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{self.path} is not a readable zip ({error}); give a folder, or a .zip, that "
                "holds train/<class>/ and test/<class>/"
            ) from error

    @cached_property
    def entries(self) -> dict[str, zipfile.ZipInfo]:
        # By name, so that of files stored twice the last counts, as when unpacking.
        return {entry.filename: entry for entry in self.zip.infolist()}

    def folders(self, prefix: str) -> list[str]:
        below = (n.removeprefix(prefix) for n in self.entries if n.startswith(prefix))
        return list({name.split("/")[0]: None for name in below if "/" in name})

    def files(self, prefix: str) -> list[str]:
        return [n for n in self.entries if n.startswith(prefix) and not n.endswith("/")]

    def read(self, name: str) -> bytes:
        try:
            if self.entries[name].file_size > _LARGEST_FILE:
                raise ValueError(f"it unpacks to {self.entries[name].file_size / 1e6:,.0f} MB")
            return self.zip.read(self.entries[name])
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
            raise DataError(f"cannot read {name} in {self.path} ({error}); replace it") from error
        except RuntimeError as error:  # a password, or a method of compression unknown here
            raise DataError(
                f"cannot read {name} in {self.path} ({error}); unpack it to a folder and give that"
            ) from error

    def stamp(self) -> Any:
        stat = self.path.stat()
        return [str(self.path.absolute()), stat.st_size, stat.st_mtime_ns]

    def close(self) -> None:
        if "zip" in self.__dict__:
            self.zip.close()


def _list(tree: _Tree) -> _Listing:
    base = _base(tree)
    roles = _roles(tree, base)
    if len(roles) == 1:
        raise DataError(
            f"{tree.path} has {base}train/ but neither test/ nor val/ beside it; add a folder of "
            "class folders to test on"
        )
    classes = tuple(sorted(n for n in tree.folders(f"{base}train/") if not _hidden(n)))
    if not classes:
        raise DataError(
            f"{tree.path} has no class folders in {base}train/; put pictures into train/<class>/"
        )
    listing = _Listing([], [], {}, classes)
    for role in roles:
        start = len(listing.names)
        for name, found in _by_class(tree, f"{base}{role}/", role, classes).items():
            listing.names.extend(found)
            listing.labels.extend([classes.index(name)] * len(found))
        listing.parts[role] = (start, len(listing.names))
    return listing


def _base(tree: _Tree) -> str:
    """Where train/ lies: at the top or in one folder of it."""
    top = sorted(name for name in tree.folders("") if not _hidden(name))
    if "train" in top:
        return ""
    inner = [name for name in top if "train" in tree.folders(f"{name}/")]
    if len(inner) == 1:
        return f"{inner[0]}/"
    if len(inner) > 1:
        raise DataError(
            f"{tree.path} holds several data sets: {', '.join(inner[:5])}; "
            + ("give one of these folders" if tree.path.is_dir() else "unpack it and give one")
        )
    found = f"it holds {', '.join(top[:5])}" if top else "it holds no folders"
    raise DataError(
        f"{tree.path} has no train/ folder ({found}); name its folders train/<class>/ and "
        "test/<class>/"
    )


def _roles(tree: _Tree, base: str) -> list[str]:
    folders = tree.folders(base)
    return [role for role in ("train", "val", "test") if role in folders]


def _by_class(
    tree: _Tree, prefix: str, role: str, classes: tuple[str, ...]
) -> dict[str, list[str]]:
    """The pictures of one split by class, all sorted."""
    found: dict[str, list[str]] = {
        name: [] for name in sorted(tree.folders(prefix)) if not _hidden(name)
    }
    for name in found:
        if name not in classes:
            raise DataError(
                f"{role}/ of {tree.path} has a class '{name}' that train/ has not; "
                f"{suggest(name, classes[:20])}"
            )
    for file in tree.files(prefix):
        parts = file.removeprefix(prefix).split("/")
        if (
            any(_hidden(part) for part in parts)
            or os.path.splitext(file)[1].lower() not in SUFFIXES
        ):
            continue
        if len(parts) == 1:
            raise DataError(
                f"{file} in {tree.path} lies in no class folder; move it to {role}/<class>/"
            )
        found[parts[0]].append(file)
    for name, pictures in found.items():
        if not pictures:
            raise DataError(
                f"class folder {prefix}{name}/ in {tree.path} holds no pictures (endings read: "
                f"{' '.join(sorted(SUFFIXES))}); add some or remove it"
            )
        pictures.sort()
    if not found:
        raise DataError(f"{prefix} in {tree.path} holds no class folders; add pictures by class")
    return found


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _cached(place: Path | None) -> tuple[torch.Tensor, _Listing] | None:
    """What is kept at `place`, unless it is absent or broken."""
    file = open_cached(place)
    if file is None:
        return None
    try:
        images, labels = file.read("images"), file.read("labels")
        parts = {role: (start, stop) for role, (start, stop) in file.metadata["parts"].items()}
        return images, _Listing([], labels.tolist(), parts, tuple(file.metadata["classes"]))
    except (FileFormatError, SettingError, KeyError, ValueError):
        return None


def _keep(place: Path | None, images: torch.Tensor, listing: _Listing) -> None:
    tensors = {"images": images, "labels": torch.tensor(listing.labels)}
    keep(place, tensors, {"parts": listing.parts, "classes": listing.classes})
