"""A folder of class folders, or an archive of one.

    train/<class>/<picture>   test/<class>/<picture>   val/<class>/<picture>
    <class>/<picture>

With train, test and perhaps val, each holds the split of its name; other names of these splits, in
any case, are in `tree.SPLITS`. With train and val alone, val is the TEST split, as in Imagenette
and ImageNet, and a validation split is cut from train. With train alone, or class folders without
any of these, a fifth of each class becomes the test split, always the same images. The data set's
`note` records which. All of it may lie one folder deeper. Classes are sorted by name, pictures by
name within their class. Dot files and __MACOSX are skipped; other files in class folders are
counted in the data set's `remarks`.

The functions below `load_folder` serve every data set whose pictures are encoded one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from trajmatch.data import cache
from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.classes import choose
from trajmatch.data.sources.decode import Decoded, decode_images, picture_formats
from trajmatch.data.sources.layout import (
    TABLES,
    LayoutError,
    find_base,
    find_layout,
    is_other,
    is_picture,
    require_direct,
    shown,
    suffix_of,
)
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import Listed, Tree, archive_stem, open_tree
from trajmatch.data.stratified import cut_test
from trajmatch.errors import DataError, FileFormatError, SettingError, suggest
from trajmatch.units import byte_size

VAL_IS_TEST = "val/ is the test split, as there is no test/; validation is cut from train/"
TEST_IS_CUT = (
    "no test/ folder: a fifth of the images of each class set aside as test images, always the "
    "same ones"
)


def load_folder(path: Path, request: Request) -> ImageDataset:
    """Read a folder or archive as above; no validation split unless it has train, test and val.

    The request's classes: read these class folders only, in this order. Pictures are decoded once
    and cached until a file's size or modification time (in a zip: checksum) changes: CIFAR-10 as
    JPEG takes 30 s, then one. An archive is never unpacked to disk, but for one temporary file of a
    compressed tar. Raises DataError, with the file or folder at fault, for anything missing, empty,
    misnamed or unreadable.
    """
    with open_tree(path) as tree:
        places = find_layout(tree)
        where = places["train"]
        named = f"{where} of {path}" if where else str(path)
        chosen = choose(class_folders(tree, where), request.classes, named)
        exactly = request.classes is not None
        others: Counter[str] = Counter()
        splits: dict[str, Listed] = {
            role: pictures(tree, place, chosen, exactly=exactly, others=others)
            for role, place in places.items()
        }
        splits, note = with_test(splits, chosen)
        place = cache_place(tree, splits, request)
        remarks = passed_over(others)
        tables = [file for file in tree.beside("") if suffix_of(file) in TABLES]
        if tables:
            mend = f"; give {path / tables[0]} to take labels from it" if path.is_dir() else ""
            remarks += (f"{tables[0]} is not read, as there are class folders{mend}",)
        return decode_splits(
            name_of(path), splits, chosen, tree.read, request, place, note, remarks
        )


def name_of(path: Path) -> str:
    """The name of the data set at `path`: the folder's, or the archive's without its ending."""
    return archive_stem(path) if path.is_file() else path.resolve().name


def with_test(
    splits: Mapping[str, Listed], classes: tuple[str, ...]
) -> tuple[dict[str, Listed], str]:
    """The splits with a test split, and the note on it: val, or a fifth of each class of train."""
    if "test" in splits:
        return dict(splits), ""
    if "val" in splits:
        return {"train": splits["train"], "test": splits["val"]}, VAL_IS_TEST
    train, test = _cut(splits["train"], classes)
    return {"train": train, "test": test}, TEST_IS_CUT


def cache_place(tree: Tree, splits: dict[str, Listed], request: Request) -> Path | None:
    """The cache file of these pictures; None where they are not to be cached."""
    if not request.cache:
        return None
    return tree.cache_place(splits, request.size, *(["skip"] if request.skip else []))


def passed_over(others: Counter[str]) -> tuple[str, ...]:
    """The remark on files of class folders that are no pictures, by their endings."""
    if not others:
        return ()
    count = others.total()
    files = "1 file that is no picture" if count == 1 else f"{count:,} files that are no pictures"
    kinds = sorted(others, key=lambda kind: (-others[kind], kind))
    named = ", ".join(kind or "without ending" for kind in kinds[:5])
    return (f"passed over {files} ({named}{', ...' if len(kinds) > 5 else ''})",)


def decode_splits(
    name: str,
    splits: dict[str, Listed],
    classes: tuple[str, ...],
    read: Callable[[str], bytes],
    request: Request,
    place: Path | None,
    note: str = "",
    remarks: tuple[str, ...] = (),
) -> ImageDataset:
    """The data set of `splits` (train, test and perhaps val), decoded or from the cache at `place`.

    read: returns the bytes of a picture, by its name in `splits`; called from several threads.
    Raises DataError for a single class, a split without pictures, and what `decode_images` refuses.
    """
    if len(classes) < 2:
        raise DataError(f"'{name}' has a single class, '{classes[0]}'; give images of at least two")
    for role, listed in splits.items():
        if not listed.names:
            raise DataError(f"the {role} split of '{name}' holds no pictures; add some")
    names = [file for listed in splits.values() for file in listed.names]
    decoded, uncached = _cached(place, len(names)), 0
    if decoded is None:
        decoded = decode_images(names, read, request.size, request.progress, skip=request.skip)
        if request.cache == "read":
            fits = place is not None and decoded.images.nbytes <= cache.largest_size()
            uncached = decoded.images.nbytes if fits else 0
        else:
            remarks += _keep(place, request.source or name, decoded)
    splits, images = _without(splits, decoded.broken), decoded.images
    if decoded.broken:
        first = names[decoded.broken[0]]
        skipped = f"passed over {len(decoded.broken):,} of {len(names):,} pictures that cannot be "
        skipped += f"decoded, such as {first}"
        note = f"{note}; {skipped}" if note else skipped
    parts, start = {}, 0
    for role, listed in splits.items():
        part = images[start : start + len(listed.names)]
        # Cutting validation copies train, and its view goes; views of the others would keep the
        # memory of all images.
        part = part if role == "train" else part.clone()
        parts[role] = Split(part, torch.tensor(listed.labels, dtype=torch.int64))
        start += len(listed.names)
    dataset = ImageDataset(name, parts["train"], parts["test"], parts.get("val"), classes, note)
    return replace(dataset, remarks=remarks, uncached=uncached)


def _without(splits: dict[str, Listed], broken: list[int]) -> dict[str, Listed]:
    """The splits without the pictures at these places among all of them."""
    if not broken:
        return splits
    gone, start, rest = set(broken), 0, {}
    for role, listed in splits.items():
        count = len(listed.names)
        rest[role] = listed.take([i for i in range(count) if start + i not in gone])
        start += count
    return rest


def _keep(place: Path | None, source: str, decoded: Decoded) -> tuple[str, ...]:
    """Cache decoded pictures, and the remark on it."""
    if place is None:
        return ()
    images = decoded.images
    about = {"source": source, "images": len(images), "broken": decoded.broken}
    if not cache.keep(place, {"images": images}, about):
        return ()
    return (
        f"cached the decoded images ({byte_size(images.nbytes)}) in {place.parent}; `trajmatch "
        "cache` lists and clears it",
    )


def base_of(tree: Tree) -> str:
    """The prefix of train/: "" at the top, or "folder/" one folder deeper."""
    base = find_base(tree, lambda name: name == "train")
    if base is None:
        top = shown(tree, "")
        found = f"it holds {', '.join(top[:5])}" if top else "it holds no folders"
        raise DataError(
            f"{tree.path} has no train/ folder ({found}); name its folders train/<class>/ and "
            "test/<class>/"
        )
    return base


def class_folders(tree: Tree, place: str) -> list[str]:
    """Names of the class folders in `place`, sorted. Raises DataError when there are none."""
    found = shown(tree, place)
    if not found:
        raise DataError(
            f"{tree.path} has no class folders in {place}; put pictures into {place}<class>/"
        )
    return found


def pictures(
    tree: Tree,
    prefix: str,
    classes: tuple[str, ...],
    *,
    exactly: bool,
    others: Counter[str] | None = None,
) -> Listed:
    """The pictures of the split in `prefix`, sorted class by class; labels index `classes`.

    With `exactly`, all of `classes` must be there and other folders are ignored; without it,
    classes may be missing and other folders are refused. others: counts files that are no pictures,
    by ending.
    """
    present = shown(tree, prefix)
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
        if not is_picture("/".join(parts)):
            if others is not None and len(parts) > 1 and is_other("/".join(parts)):
                others[suffix_of(file)] += 1
            continue
        if len(parts) == 1:
            raise LayoutError(
                f"{file} in {tree.path} lies in no class folder; move it to {prefix}<class>/"
            )
        found[parts[0]].append(file)
    if not exactly:
        require_direct(tree, prefix, found)
    for name, files in found.items():
        if not files:
            raise DataError(
                f"class folder {prefix}{name}/ in {tree.path} holds no pictures (endings read: "
                f"{' '.join(sorted(picture_formats()))}); add some or remove it"
            )
    if not found:
        raise DataError(f"{prefix} in {tree.path} holds no class folders; add pictures by class")
    return listed(found, classes)


def listed(found: dict[str, list[str]], classes: tuple[str, ...]) -> Listed:
    """Pictures by class, as one list in the order of `classes`, sorted within each."""
    number = {name: label for label, name in enumerate(classes)}
    pairs = sorted((number[name], file) for name, files in found.items() for file in files)
    return Listed([file for _, file in pairs], [label for label, _ in pairs])


def _cut(complete: Listed, classes: tuple[str, ...]) -> tuple[Listed, Listed]:
    """Training and test images of a data set without test images of its own."""
    rest, cut = cut_test(
        torch.tensor(complete.labels, dtype=torch.int64), classes, "without a test/ folder"
    )
    return complete.take(rest.tolist()), complete.take(cut.tolist())


def _cached(place: Path | None, count: int) -> Decoded | None:
    """What is cached at `place` of `count` pictures; None where it is absent or broken."""
    file = cache.open_cached(place)
    if file is None:
        return None
    try:
        images = file.read("images")
        broken = [int(i) for i in file.metadata.get("broken", [])]
    except (FileFormatError, SettingError, KeyError, TypeError, ValueError):
        return None
    return Decoded(images, broken) if len(images) + len(broken) == count else None
