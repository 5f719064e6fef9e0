"""A folder of class folders, or a .zip of one.

    train/<class>/<picture>   test/<class>/<picture>   val/<class>/<picture>
    <class>/<picture>

With train, test and perhaps val, each holds the split of its name. With train and val alone, val
is the TEST split, as in Imagenette and ImageNet, and a validation split is cut from train. With
train alone, or class folders without any of these, a fifth of each class becomes the test split,
always the same images. The data set's `note` records which. All of it may lie one folder deeper.
Classes are sorted by name, pictures by name within their class. Dot files, __MACOSX and files
without a picture's ending are skipped.

The functions below `load_folder` serve every data set whose pictures are encoded one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trajmatch.data.cache import keep, open_cached
from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.classes import choose
from trajmatch.data.sources.decode import SUFFIXES, decode_images
from trajmatch.data.sources.tree import Listed, Tree, open_tree
from trajmatch.data.stratified import cut_test
from trajmatch.errors import DataError, FileFormatError, SettingError, suggest

VAL_IS_TEST = "val/ is the test split, as there is no test/; validation is cut from train/"
TEST_IS_CUT = (
    "no test/ folder: a fifth of the images of each class set aside as test images, always the "
    "same ones"
)

_SPLIT_WORDS = ("train", "training", "test", "testing", "val", "valid", "validation")


def load_folder(
    path: Path,
    *,
    size: int | None = None,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """Read a folder or .zip as above; no validation split unless it has train, test and val.

    classes: read these class folders only, in this order. Pictures are decoded once and cached
    until a file's size or modification time (in a zip: checksum) changes: CIFAR-10 as JPEG takes
    30 s, then one. A zip is never unpacked to disk. `size` as in `load_data`. Raises DataError,
    with the file or folder at fault, for anything missing, empty, misnamed or unreadable.
    """
    with open_tree(path) as tree:
        places = _layout(tree)
        where = places["train"]
        named = f"{where} of {path}" if where else str(path)
        chosen = choose(class_folders(tree, where), classes, named)
        exactly = classes is not None
        splits: dict[str, Listed] = {
            role: pictures(tree, place, chosen, exactly=exactly) for role, place in places.items()
        }
        note = ""
        if "test" not in splits and "val" in splits:
            splits["test"], note = splits.pop("val"), VAL_IS_TEST
        elif "test" not in splits:
            splits["train"], splits["test"] = _cut(splits["train"], chosen)
            note = TEST_IS_CUT
        name = path.stem if path.is_file() else path.resolve().name
        place = tree.cache_place(splits, size) if cache else None
        return decode_splits(name, splits, chosen, tree.read, size, place, progress, note)


def decode_splits(
    name: str,
    splits: dict[str, Listed],
    classes: tuple[str, ...],
    read: Callable[[str], bytes],
    size: int | None,
    place: Path | None,
    progress: Callable[[int, int], None] | None,
    note: str,
) -> ImageDataset:
    """The data set of `splits` (train, test and perhaps val), decoded or from the cache at `place`.

    read: returns the bytes of a picture, by its name in `splits`; called from several threads.
    Raises DataError for a split without pictures, and for what `decode_images` refuses.
    """
    for role, listed in splits.items():
        if not listed.names:
            raise DataError(f"the {role} split of '{name}' holds no pictures; add some")
    names = [file for listed in splits.values() for file in listed.names]
    images = _cached(place, len(names))
    if images is None:
        images = decode_images(names, read, size, progress)
        keep(place, {"images": images}, {})
    parts, start = {}, 0
    for role, listed in splits.items():
        part = images[start : start + len(listed.names)]
        # Cutting validation copies train, and its view goes; views of the others would keep the
        # memory of all images.
        part = part if role == "train" else part.clone()
        parts[role] = Split(part, torch.tensor(listed.labels))
        start += len(listed.names)
    return ImageDataset(name, parts["train"], parts["test"], parts.get("val"), classes, note)


def base_of(tree: Tree) -> str:
    """The prefix of train/: "" at the top, or "folder/" one folder deeper."""
    base = _base(tree)
    if base is None:
        top = _shown(tree, "")
        found = f"it holds {', '.join(top[:5])}" if top else "it holds no folders"
        raise DataError(
            f"{tree.path} has no train/ folder ({found}); name its folders train/<class>/ and "
            "test/<class>/"
        )
    return base


def class_folders(tree: Tree, place: str) -> list[str]:
    """Names of the class folders in `place`, sorted. Raises DataError when there are none."""
    found = _shown(tree, place)
    if not found:
        raise DataError(
            f"{tree.path} has no class folders in {place}; put pictures into {place}<class>/"
        )
    return found


def pictures(tree: Tree, prefix: str, classes: tuple[str, ...], *, exactly: bool) -> Listed:
    """The pictures of the split in `prefix`, sorted class by class; labels index `classes`.

    With `exactly`, all of `classes` must be there and other folders are ignored; without it,
    classes may be missing and other folders are refused.
    """
    present = _shown(tree, prefix)
    odd = sorted(set(classes) - set(present) if exactly else set(present) - set(classes))
    if odd:
        what, mend = f"a class '{odd[0]}' that train/ has not", suggest(odd[0], classes[:20])
        if exactly:
            what, mend = f"no class folder '{odd[0]}'", "add it, or choose other classes"
        raise DataError(f"{prefix} of {tree.path} has {what}; {mend}")
    wanted = classes if exactly else tuple(present)
    found: dict[str, list[str]] = {name: [] for name in wanted}
    for file in tree.files(prefix, wanted if exactly else None):
        parts = file.removeprefix(prefix).split("/")
        if not _is_picture("/".join(parts)):
            continue
        if len(parts) == 1:
            raise DataError(
                f"{file} in {tree.path} lies in no class folder; move it to {prefix}<class>/"
            )
        found[parts[0]].append(file)
    for name, files in found.items():
        if not files:
            raise DataError(
                f"class folder {prefix}{name}/ in {tree.path} holds no pictures (endings read: "
                f"{' '.join(sorted(SUFFIXES))}); add some or remove it"
            )
    if not found:
        raise DataError(f"{prefix} in {tree.path} holds no class folders; add pictures by class")
    return listed(found, classes)


def listed(found: dict[str, list[str]], classes: tuple[str, ...]) -> Listed:
    """Pictures by class, as one list in the order of `classes`, sorted within each."""
    number = {name: label for label, name in enumerate(classes)}
    pairs = sorted((number[name], file) for name, files in found.items() for file in files)
    return Listed([file for _, file in pairs], [label for label, _ in pairs])


def _layout(tree: Tree) -> dict[str, str]:
    """The prefixes of the class folders: of train, and of val and test where they exist."""
    base = _base(tree)
    if base is None:
        return {"train": _plain(tree)}
    there = _shown(tree, base)
    roles = [role for role in ("train", "val", "test") if role in there]
    for name in there if len(roles) == 1 else ():
        if name != "train" and any(_is_picture(file) for file in tree.files(f"{base}{name}/")):
            raise DataError(
                f"{tree.path / base} has train/ without test/ or val/, and pictures in {name}/ "
                "beside it; name the folder to test on test/, or move what is no part of it away"
            )
    return {role: f"{base}{role}/" for role in roles}


def _base(tree: Tree) -> str | None:
    """The prefix of train/; None where there is none. Raises DataError for several data sets."""
    top = _shown(tree, "")
    if "train" in top:
        return ""
    inner = [name for name in top if "train" in tree.folders(f"{name}/")]
    if len(inner) > 1:
        raise DataError(
            f"{tree.path} holds several data sets: {', '.join(inner[:5])}; "
            + ("give one of these folders" if tree.path.is_dir() else "unpack it and give one")
        )
    return f"{inner[0]}/" if inner else None


def _plain(tree: Tree) -> str:
    """The prefix of class folders without a train/: "" at the top, or its only folder.

    Raises DataError for folders that seem to be splits of another name, and for a single class.
    """
    place, found = "", _shown(tree, "")
    if len(found) == 1 and not _split_words(found) and _shown(tree, f"{found[0]}/"):
        place = f"{found[0]}/"
        found = _shown(tree, place)
    if not found:
        raise DataError(
            f"{tree.path} holds no folders; put pictures into <class>/, or into train/<class>/ and "
            "test/<class>/"
        )
    splits = [f"{place}{name}/" for name in _split_words(found)]
    if splits:
        raise DataError(
            f"{tree.path} holds {', '.join(splits)} and no train/; name its folders train/<class>/ "
            f"and test/<class>/, or {splits[0]} otherwise if it is a class"
        )
    if len(found) == 1:
        raise DataError(
            f"{tree.path} holds one class folder, '{found[0]}'; pictures of at least two classes "
            "are needed, in <class>/ each"
        )
    return place


def _split_words(names: list[str]) -> list[str]:
    return [name for name in names if name.lower() in _SPLIT_WORDS]


def _cut(complete: Listed, classes: tuple[str, ...]) -> tuple[Listed, Listed]:
    """Training and test images of a data set without test images of its own."""
    rest, cut = cut_test(torch.tensor(complete.labels), classes, "without a test/ folder")
    return complete.take(rest.tolist()), complete.take(cut.tolist())


def _shown(tree: Tree, place: str) -> list[str]:
    """Names of the folders in `place`, sorted."""
    return sorted(name for name in tree.folders(place) if not _hidden(name))


def _is_picture(file: str) -> bool:
    hidden = any(_hidden(part) for part in file.split("/"))
    return not hidden and os.path.splitext(file)[1].lower() in SUFFIXES


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _cached(place: Path | None, count: int) -> torch.Tensor | None:
    """The images cached at `place`; None where they are absent, broken or not `count`."""
    file = open_cached(place)
    if file is None:
        return None
    try:
        images = file.read("images")
    except (FileFormatError, SettingError, KeyError):
        return None
    return images if len(images) == count else None
