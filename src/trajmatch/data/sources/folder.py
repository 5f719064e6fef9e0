"""A folder of class folders, or a .zip of one.

    train/<class>/<picture>   test/<class>/<picture>   val/<class>/<picture>

With train, test and perhaps val, each is what its name says. With train and val alone, val is the
TEST split, as in Imagenette and ImageNet, and a validation split is cut from train; the data set's
`note` says so. All may lie in one folder more. Classes are sorted by name, pictures by name within
their class. Dot files, __MACOSX and whatever has no picture's ending are passed over.

The parts below `load_folder` serve every data set whose pictures are encoded one by one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trajmatch.data.cache import keep, open_cached
from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.decode import SUFFIXES, decode_images
from trajmatch.data.sources.tree import Listed, Tree, open_tree
from trajmatch.errors import DataError, FileFormatError, SettingError, suggest

VAL_IS_TEST = "val/ is the test split, as there is no test/; validation is cut from train/"


def load_folder(
    path: Path,
    *,
    size: int | None = None,
    cache: bool = True,
    progress: Callable[[int, int], None] | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """Read a folder or .zip as above; no validation split unless it has train, test and val.

    `classes` restricts it to these class folders, in the order given; no other is looked into.
    Pictures are decoded once and kept in the cache, for as long as no file's size or time of change
    (in a zip: checksum) differs: CIFAR-10 as JPEG takes half a minute, then a second. A zip is
    never unpacked to disk. `size` as in `load_data`. Raises DataError, with the file or folder at
    fault, for anything that is missing, empty, misnamed or unreadable.
    """
    with open_tree(path) as tree:
        base = base_of(tree)
        roles = [role for role in ("train", "val", "test") if role in tree.folders(base)]
        if len(roles) == 1:
            raise DataError(
                f"{path} has {base}train/ but neither test/ nor val/ beside it; add a folder of "
                "class folders to test on"
            )
        chosen = choose(class_folders(tree, base), classes, f"{base}train/ of {path}")
        exactly = classes is not None
        splits: dict[str, Listed] = {
            role: pictures(tree, f"{base}{role}/", chosen, exactly=exactly) for role in roles
        }
        note = ""
        if "test" not in splits:
            splits["test"], note = splits.pop("val"), VAL_IS_TEST
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

    `read` gives a picture's bytes by its name and is called from several threads. Raises DataError
    for a split without pictures and whatever `decode_images` refuses.
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
        # A view of train may go when validation is cut from it; views of the others would keep all.
        part = part if role == "train" else part.clone()
        parts[role] = Split(part, torch.tensor(listed.labels))
        start += len(listed.names)
    return ImageDataset(name, parts["train"], parts["test"], parts.get("val"), classes, note)


def choose(found: Sequence[str], asked: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """All classes `found`, or those `asked` for, in that order.

    Raises DataError, which names `where` they were sought, for one not found, given twice, or none.
    """
    if asked is None:
        return tuple(found)
    if not asked:
        raise DataError("the list of classes is empty; name some, or leave it out for all")
    for i, name in enumerate(asked):
        if name in asked[:i]:
            raise DataError(f"class '{name}' is chosen twice; name each class once")
        if name not in found:
            near = difflib.get_close_matches(name, found, n=5) or found[:20]
            raise DataError(f"{where} has no class '{name}'; {suggest(name, near)}")
    return tuple(asked)


def base_of(tree: Tree) -> str:
    """Where train/ lies: at the top ("") or in one folder of it ("folder/")."""
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


def class_folders(tree: Tree, base: str) -> list[str]:
    """Names of the class folders in train/, sorted. Raises DataError when there are none."""
    found = sorted(name for name in tree.folders(f"{base}train/") if not _hidden(name))
    if not found:
        raise DataError(
            f"{tree.path} has no class folders in {base}train/; put pictures into train/<class>/"
        )
    return found


def pictures(tree: Tree, prefix: str, classes: tuple[str, ...], *, exactly: bool) -> Listed:
    """The pictures of the split in `prefix`, class by class, sorted; labels index `classes`.

    With `exactly`, all of `classes` must be there and other folders are not looked into; without,
    classes may be missing and other folders are refused.
    """
    present = sorted(name for name in tree.folders(prefix) if not _hidden(name))
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
        ending = os.path.splitext(file)[1].lower()
        if any(_hidden(part) for part in parts) or ending not in SUFFIXES:
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


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _cached(place: Path | None, count: int) -> torch.Tensor | None:
    """The images kept at `place`, unless they are absent, broken or not `count`."""
    file = open_cached(place)
    if file is None:
        return None
    try:
        images = file.read("images")
    except (FileFormatError, SettingError, KeyError):
        return None
    return images if len(images) == count else None
