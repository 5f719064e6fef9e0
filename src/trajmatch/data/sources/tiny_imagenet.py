"""Tiny ImageNet: 200 classes of ImageNet, 500 + 50 pictures each of 64 x 64.

Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", CS 231N, Stanford, 2015. Read as
distributed, also from the .zip, where one table lists the classes of val/:

    train/<class>/images/<picture>   val/images/<picture>   val/val_annotations.txt   words.txt

or with val/ sorted into class folders. val/ is the TEST split, as in all published results: the
pictures of test/ have no labels.
"""

from __future__ import annotations

from collections import Counter

from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.classes import choose
from trajmatch.data.sources.folder import (
    base_of,
    cache_place,
    class_folders,
    decode_splits,
    pictures,
)
from trajmatch.data.sources.imagenet import NOTE, by_table
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import Listed, Tree, open_tree
from trajmatch.errors import DataError

_PLACES = ("tiny-imagenet-200/train", "tiny-imagenet-200.zip", "tiny-imagenet/train", "train")
_GET = "download tiny-imagenet-200.zip from http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def load_tiny_imagenet(request: Request) -> ImageDataset:
    """All 200 classes, sorted by folder, or the request's, each a folder or a name."""
    path = request.find("tiny-imagenet", _PLACES, _GET)
    path = path if path.suffix == ".zip" else path.parent
    with open_tree(path) as tree:
        base = base_of(tree)
        found = class_folders(tree, f"{base}train/")
        names = _names(tree, base, found)
        by_name = {name: folder for folder, name in names.items()}
        wanted = request.classes and [by_name.get(word, word) for word in request.classes]
        chosen = choose(found, wanted, f"{base}train/ of {path}")
        splits = {
            "train": pictures(tree, f"{base}train/", chosen, exactly=True),
            "test": _validation(tree, base, chosen),
        }
        place = cache_place(tree, splits, request)
        classes = tuple(names[folder] for folder in chosen)
        return decode_splits("tiny-imagenet", splits, classes, tree.read, request, place, NOTE)


def _names(tree: Tree, base: str, folders: list[str]) -> dict[str, str]:
    """Class folder -> the first of its names in words.txt, where no other class has that one."""
    file = f"{base}words.txt"
    if not tree.files(base, ("words.txt",)):
        return {folder: folder for folder in folders}
    rows = (line.split("\t") for line in tree.read(file).decode(errors="replace").splitlines())
    words = {row[0]: row[1].split(",")[0].strip() for row in rows if len(row) > 1}
    names = {folder: words.get(folder) or folder for folder in folders}
    counts = Counter(names.values())
    return {folder: name if counts[name] == 1 else folder for folder, name in names.items()}


def _validation(tree: Tree, base: str, classes: tuple[str, ...]) -> Listed:
    """The pictures of val/, by class folders or by the table of its classes."""
    val = f"{base}val/"
    if "val" not in tree.folders(base):
        raise DataError(f"{tree.path} has no {val} to test on; unpack the distributed .zip anew")
    if set(tree.folders(val)) & set(classes):
        return pictures(tree, val, classes, exactly=True)
    table = f"{val}val_annotations.txt"
    # val_0.JPEG<tab>n03444034<tab>0<tab>32<tab>44<tab>62: picture, class, box
    rows = [line.split("\t") for line in tree.read(table).decode(errors="replace").splitlines()]
    files = ((f"{val}images/{row[0]}", row[1]) for row in rows if len(row) > 1)
    return by_table(files, classes, f"{table} of {tree.path}")
