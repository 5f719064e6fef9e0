"""Where the class folders of a tree lie, and what is said of layouts that cannot be meant."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from trajmatch.data.sources.decode import picture_formats
from trajmatch.data.sources.tree import Tree, role_within, split_role
from trajmatch.errors import DataError

TABLES = (".csv", ".tsv", ".parquet")
"""Endings of tables of labels."""

_PICTURES = frozenset(
    ("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "jpegimages")
)
_MASKS = frozenset(
    ("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "gt")
)
_LAYOUT = "train/<class>/ and test/<class>/"


class LayoutError(DataError):
    """A tree without class folders, of which the pictures may have their labels elsewhere."""


def find_layout(tree: Tree) -> dict[str, str]:
    """The prefix of the class folders of each split: of `train`, and of `val` and `test` where
    they exist. Raises LayoutError where the tree has no such layout, DataError for more than one.
    """
    base = find_base(tree, lambda name: split_role(name) == "train")
    if base is not None:
        return _splits(tree, base)
    place = _wrapped(tree)
    return _named_splits(tree, place) or {"train": _plain(tree, place)}


def find_base(tree: Tree, is_train: Callable[[str], bool]) -> str | None:
    """The prefix of the training folder: "" at the top, or "folder/" one folder deeper.

    is_train: whether a name is that of the folder. None where there is none. Raises DataError for
    several data sets.
    """
    top = shown(tree, "")
    if any(map(is_train, top)):
        return ""
    inner = [name for name in top if any(map(is_train, tree.folders(f"{name}/")))]
    if len(inner) > 1:
        raise DataError(
            f"{tree.path} holds several data sets: {', '.join(inner[:5])}; "
            + ("give one of these folders" if tree.path.is_dir() else "unpack it and give one")
        )
    return f"{inner[0]}/" if inner else None


def _splits(tree: Tree, base: str) -> dict[str, str]:
    """The splits beside the training folder in `base`."""
    places: dict[str, str] = {}
    others = []
    for name in shown(tree, base):
        role = split_role(name)
        if role is None:
            others.append(name)
        elif role in places:
            raise LayoutError(
                f"{tree.path / base} holds {places[role]} and {base}{name}/, which both are "
                f"names of the {role} split; rename one or move it away"
            )
        else:
            places[role] = f"{base}{name}/"
    beside = [n for n in others if any(is_picture(file) for file in tree.files(f"{base}{n}/"))]
    train = places["train"]
    if not shown(tree, train):
        said = f"{tree.path} has no class folders in {train}"
        if beside and any(map(is_picture, tree.beside(train))):
            names = f"{', '.join(beside[:3])}{', ...' if len(beside) > 3 else ''}"
            raise LayoutError(
                f"{said}, but pictures, as {names} beside it has; if it is a class like these, put "
                f"all class folders into one called train/ (train/{train.split('/')[-2]}/, "
                f"train/{beside[0]}/), else put its pictures into {train}<class>/"
            )
        raise LayoutError(f"{said}; put pictures into {train}<class>/")
    if beside:
        there = ", ".join(places[role] for role in ("train", "val", "test") if role in places)
        free = [role for role in ("val", "test") if role not in places]
        name = f"rename it {' or '.join(free)} if it is that split, or " if free else ""
        raise DataError(
            f"{tree.path} has {there} and pictures in {base}{beside[0]}/ beside; {name}move it "
            "away if it is no part of the data set"
        )
    return {role: places[role] for role in ("train", "val", "test") if role in places}


def _named_splits(tree: Tree, place: str) -> dict[str, str] | None:
    """Splits whose names hold a word for each, as Train_png/ and Test_png/.

    Taken only where nothing else can be meant: every folder with pictures has the name of another
    split, train and another are there, all hold class folders and no pictures beside them, and no
    class is missing from train.
    """
    found: dict[str, str] = {}
    classes: dict[str, set[str]] = {}
    for name in shown(tree, place):
        prefix = f"{place}{name}/"
        role = role_within(name)
        if role is None or role in found:
            if any(is_picture(file) for file in tree.files(prefix)):
                return None
            continue
        files = [f.removeprefix(prefix).split("/") for f in tree.files(prefix) if is_picture(f)]
        if any(len(parts) != 2 for parts in files):
            return None
        found[role], classes[role] = prefix, {parts[0] for parts in files}
    if "train" not in found or len(found) < 2 or not all(classes.values()):
        return None
    if any(names - classes["train"] for names in classes.values()):
        return None
    return {role: found[role] for role in ("train", "val", "test") if role in found}


def _wrapped(tree: Tree) -> str:
    """The prefix of the outermost folders: "", or "folder/" where a single one holds all."""
    found = shown(tree, "")
    single = len(found) == 1 and not split_role(found[0]) and shown(tree, f"{found[0]}/")
    return f"{found[0]}/" if single else ""


def _plain(tree: Tree, place: str) -> str:
    """`place`, if class folders without a split lie there.

    Raises DataError for folders that seem to be splits of another name, for pictures beside their
    masks, and for a single class.
    """
    found = shown(tree, place)
    if not found:
        raise LayoutError(
            f"{tree.path} holds no folders; put pictures into <class>/, or into {_LAYOUT}"
        )
    splits = [f"{place}{name}/" for name in found if split_role(name)]
    if splits:
        raise LayoutError(
            f"{tree.path} holds {', '.join(splits)} and no train/; name its folders {_LAYOUT}, or "
            f"put all class folders into one called train/ if {splits[0]} is a class"
        )
    words = {name.lower() for name in found}
    if words & _PICTURES and words & _MASKS:
        raise LayoutError(
            f"{tree.path} holds {', '.join(f'{place}{name}/' for name in found[:4])}, which look "
            "like pictures and their masks and not like classes; "
            + _mend(tree, [file for file in tree.files(place) if is_picture(file)], place)
        )
    if len(found) == 1:
        raise LayoutError(
            f"{tree.path} holds one class folder, '{found[0]}'; pictures of at least two classes "
            "are needed, in <class>/ each" + _instead(tree, tree.files(place), place)
        )
    return place


def require_direct(tree: Tree, prefix: str, found: Mapping[str, Sequence[str]]) -> None:
    """Refuse class folders that hold folders and no pictures: `seg_train/seg_train/<class>/`,
    `<class>/images/` beside `<class>/masks/`.

    found: the pictures of each class, by their full names. One folder of the same name in each
    class, as Tiny ImageNet's <class>/images/, is part of a layout that is read.
    """
    inner: set[str] = set()
    deep = []
    for name, files in found.items():
        below = [file.removeprefix(f"{prefix}{name}/").split("/") for file in files]
        if not files or any(len(parts) == 1 for parts in below):
            continue
        deep.append(name)
        inner |= {parts[0] if len(parts) == 2 else "/".join(parts[:2]) for parts in below}
    if not deep or (len(inner) == 1 and "/" not in next(iter(inner))):
        return
    folders = sorted({file.removeprefix(f"{prefix}{deep[0]}/").split("/")[0]
                      for file in found[deep[0]]})  # fmt: skip
    shown_folders = ", ".join(f"{name}/" for name in folders[:3])
    raise LayoutError(
        f"class folder {prefix}{deep[0]}/ of {tree.path} holds no pictures but folders "
        f"({shown_folders}{', ...' if len(folders) > 3 else ''}); "
        + _mend(tree, [file for files in found.values() for file in files], prefix)
        + "; or name the classes (--classes) if it is one with all in it"
    )


def _mend(tree: Tree, pictures: Iterable[str], prefix: str) -> str:
    better = _instead(tree, pictures, prefix).removeprefix("; ")
    return better or f"put the pictures of each class directly into {prefix}<class>/"


def _instead(tree: Tree, pictures: Iterable[str], prefix: str) -> str:
    """`; did you mean PATH/seg_train?`, where folders lie deeper that look like a data set."""
    holders = Counter(os.path.dirname(file) for file in pictures if is_picture(file))
    parents: dict[str, list[str]] = {}
    for holder in holders:
        parent, _, name = holder.rpartition("/")
        parents.setdefault(parent, []).append(name)
    likely = [
        parent
        for parent, names in parents.items()
        if parent.strip("/") != prefix.strip("/")
        and len(names) > 1
        and not {name.lower() for name in names} <= _PICTURES | _MASKS
    ]
    if not likely:
        return ""
    likely.sort(key=lambda p: (bool(set(p.lower().split("/")) & _MASKS), p))
    roles = {role: p for p in reversed(likely) if (role := role_within(p.replace("/", " ")))}
    best = roles.get("train", likely[0])
    where = f"{tree.path / best}" if tree.path.is_dir() else f"{best}/ of it, unpacked"
    said = f"; did you mean {where}?"
    if "train" in roles and len(roles) > 1:
        moved = (f"{roles[r]}/ to {r}/" for r in ("train", "val", "test") if r in roles)
        said += f" or move {' and '.join(moved)}"
    return said


def shown(tree: Tree, place: str) -> list[str]:
    """Names of the folders in `place`, sorted, without hidden ones."""
    return sorted(name for name in tree.folders(place) if not is_hidden(name))


def is_picture(file: str) -> bool:
    return not _any_hidden(file) and suffix_of(file) in picture_formats()


def is_other(file: str) -> bool:
    """Whether a file is neither a picture nor hidden."""
    return not _any_hidden(file) and suffix_of(file) not in picture_formats()


def suffix_of(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _any_hidden(file: str) -> bool:
    return any(map(is_hidden, file.split("/")))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
