"""Pictures with a table of their labels: .csv, .tsv or .parquet, beside them or above.

    photos/labels.csv   photos/images/<picture>      (filename,label or filename,label,split)
    photos/train.csv    photos/test.csv   photos/train/<picture>   photos/test/<picture>

The column of file names is the one whose values name pictures, with their folders and endings or
without. The label column is the only other one, or the one called "label" or a word like it. A
column of words for splits, the name of the table, or the folders of the pictures say which split a
picture is of; otherwise, a fifth of each class is cut as test images, as from a folder.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.arrays import one_line
from trajmatch.data.sources.classes import choose
from trajmatch.data.sources.folder import cache_place, decode_splits, listed, name_of, with_test
from trajmatch.data.sources.layout import TABLES, is_hidden, is_picture, suffix_of
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import Listed, Tree, open_tree, role_within, split_role
from trajmatch.errors import DataError, MissingExtraError, suggest

_LABEL_COLUMNS = (
    "label", "labels", "class", "classname", "labelname", "category", "target", "y", "species",
    "breed", "classid", "labelid",
)  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """A table whose rows name pictures."""

    name: str
    """In its folder or archive."""
    role: str | None
    """The split that its name stands for."""
    files: list[str]
    """The picture of each row."""
    columns: dict[str, list[str]]
    """The other columns, as texts."""

    @property
    def split_column(self) -> str | None:
        """The column with a word for a split in every row."""
        return next((c for c, v in self.columns.items() if all(map(split_role, v))), None)

    @property
    def label_column(self) -> str | None:
        """The column of labels; None where there is none. Raises DataError for several."""
        found = [column for column in self.columns if column != self.split_column]
        by_word = {re.sub(r"[\W_]+", "", column.lower()): column for column in found}
        for word in _LABEL_COLUMNS:
            if word in by_word:
                return by_word[word]
        if len(found) > 1:
            raise DataError(
                f"{self.name} has the columns {', '.join(found[:8])}"
                f"{', ...' if len(found) > 8 else ''} beside that of pictures; call the one with "
                "the class of each 'label' (one class per picture is read)"
            )
        return found[0] if found else None


def load_table(path: Path, request: Request) -> ImageDataset:
    """The data set of the table at `path`, whose pictures lie in its folder or below.

    Raises DataError for a table that cannot be read or names no pictures, MissingExtraError for a
    .parquet without pyarrow.
    """
    with open_tree(path.parent) as tree:
        found = load_tables_of(tree, request, [path.name])
        if found is None:
            raise DataError(
                f"no column of {path} names pictures below {path.parent}; give one of file names"
            )
        return found


def load_tables_of(
    tree: Tree, request: Request, names: Sequence[str] | None = None
) -> ImageDataset | None:
    """The data set of the tables in `tree`; None where no table names its pictures.

    names: the tables; None: all at most two folders deep. Raises DataError for several tables of
    one split, for pictures that are not there, and for rows without a class.
    """
    files = [f for f in tree.files("") if not any(map(is_hidden, f.split("/")))]
    pictures = [file for file in files if is_picture(file)]
    if names is None:
        names = [f for f in files if suffix_of(f) in TABLES and f.count("/") <= 2
                 and "submission" not in f.lower()]  # fmt: skip
    tables = [t for t in (_read(tree, name, pictures) for name in sorted(names)) if t is not None]
    labeled = [table for table in tables if table.label_column is not None]
    if not labeled:
        return None
    roles = [table.role for table in labeled]
    if len(set(roles)) < len(roles) or (None in roles and len(roles) > 1):
        raise DataError(
            f"{tree.path} holds several tables of labels: {', '.join(t.name for t in labeled)}; "
            f"give one of them, such as {tree.path / labeled[0].name}, or name them train, val and "
            "test"
        )
    remarks = [f"passed over {t.name}, which has no labels" for t in tables if t not in labeled]
    unnamed = len(set(pictures) - {file for table in tables for file in table.files})
    if unnamed:
        remarks.append(f"passed over {unnamed:,} pictures that no table of labels names")
    splits, classes = _splits(labeled)
    chosen = choose(classes, request.classes, labeled[0].name)
    parts = {
        role: listed({name: found.get(name, []) for name in chosen}, chosen)
        for role, found in splits.items()
    }
    parts, note = with_test(parts, chosen)
    return _decoded(tree, parts, chosen, request, note, tuple(remarks))


def _decoded(
    tree: Tree,
    parts: dict[str, Listed],
    classes: tuple[str, ...],
    request: Request,
    note: str,
    remarks: tuple[str, ...],
) -> ImageDataset:
    place = cache_place(tree, parts, request)
    name = name_of(tree.path)
    return decode_splits(name, parts, classes, tree.read, request, place, note, remarks)


def _splits(tables: list[_Table]) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Pictures by class by split, and the classes of train."""
    splits: dict[str, dict[str, list[str]]] = {}
    for table in tables:
        column, labels = table.split_column, table.columns[str(table.label_column)]
        if table.role is not None:
            roles: list[str | None] = [table.role] * len(labels)
        elif column is not None:
            roles = [split_role(word) for word in table.columns[column]]
        else:
            roles = [_role_of(file) for file in table.files]
            if None in roles or "train" not in roles:
                roles = ["train"] * len(labels)
        known: dict[str, str] = {}
        for row, (file, label, role) in enumerate(zip(table.files, labels, roles, strict=True), 1):
            if not label:
                raise DataError(f"row {row} of {table.name} has no label; add it or remove the row")
            if known.setdefault(file, label) != label:
                raise DataError(
                    f"{table.name} gives {file} two labels, '{known[file]}' and '{label}'; one "
                    "label per picture is read"
                )
            pictures = splits.setdefault(str(role), {}).setdefault(label, [])
            if file not in pictures[-1:]:
                pictures.append(file)
    if "train" not in splits:
        raise DataError(f"{tables[0].name} names no pictures to train on; add them")
    classes = sorted(splits["train"], key=_numbers_first)
    for role, found in splits.items():
        strange = next((label for label in found if label not in classes), None)
        if strange is not None:
            raise DataError(
                f"the {role} pictures have a class '{strange}' that those of train have not; "
                + suggest(strange, classes[:20])
            )
    return {
        r: {c: sorted(set(f)) for c, f in found.items()} for r, found in splits.items()
    }, classes


def _numbers_first(label: str) -> tuple[int, str]:
    return (int(label), label) if label.isdecimal() and len(label) < 19 else (10**18, label)


def _role_of(file: str) -> str | None:
    """The split that a folder of a path stands for."""
    folders = PurePosixPath(file).parts[:-1]
    return next((role for folder in folders if (role := role_within(folder))), None)


def _read(tree: Tree, name: str, pictures: list[str]) -> _Table | None:
    """The table, if one of its columns names pictures; None if none does."""
    columns = _columns(tree, name)
    role = role_within(PurePosixPath(name).stem) or _role_of(name)
    own = [file for file in pictures if role is not None and _role_of(file) == role]
    index = _index(own or pictures)
    folder = name[: name.rfind("/") + 1]
    found = {
        column: [_find(value, folder, index) for value in values]
        for column, values in columns.items()
    }
    # Labels and row numbers may name pictures by chance, as 1 does 1.png: those repeat, these have
    # no endings.
    counts = {
        column: (len(files) - files.count(None), sum(map(is_picture, columns[column])))
        for column, files in found.items()
        if 2 * len(set(files) - {None}) > len(files)
    }
    best = max(counts, key=lambda column: counts[column], default=None)
    if best is None:
        return None
    files = found[best]
    if None in files:
        row = files.index(None)
        raise DataError(
            f"row {row + 1} of {name} in {tree.path} names '{columns[best][row]}', and there is no "
            "such picture, or several; add it or remove the row"
        )
    rest = {c: values for c, values in columns.items() if c not in counts and any(values)}
    return _Table(name, role, [str(file) for file in files], rest)


def _index(pictures: Iterable[str]) -> dict[str, str | None]:
    """Picture by the end of its path, with its ending and without; None where several share one."""
    index: dict[str, str | None] = {}
    for file in pictures:
        parts = file.split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            for word in (tail, tail[: tail.rfind(".")]):
                index[word] = None if word in index else file
    return index


def _find(value: str, folder: str, index: dict[str, str | None]) -> str | None:
    """The picture that a cell names: by its path from the table, else by the end of a path."""
    parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts:
        return None
    beside = index.get(folder + "/".join(parts))
    if beside is not None:
        return beside
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((index[tail] for tail in tails if tail in index), None)


def _columns(tree: Tree, name: str) -> dict[str, list[str]]:
    """The columns of a table, as texts."""
    data = tree.read(name)
    if name.lower().endswith(".parquet"):
        return _parquet(data, name)
    try:
        text = data.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=_delimiter(text)) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {name} ({one_line(error)}); save it as UTF-8 .csv") from error
    if not rows:
        return {}
    width = len(rows[0])
    odd = next((i for i, row in enumerate(rows, 1) if len(row) != width), None)
    if odd is not None:
        raise DataError(
            f"line {odd} of {name} has {len(rows[odd - 1])} cells and line 1 has {width}; mend it"
        )
    headed = not any(suffix_of(cell) and is_picture(cell.strip()) for cell in rows[0])
    header = rows[0] if headed else [f"column {i + 1}" for i in range(width)]
    values = zip(*(rows[1:] if headed else rows), strict=True)
    return {
        column.strip(): [cell.strip() for cell in cells]
        for column, cells in zip(header, values, strict=False)
    }


def _delimiter(text: str) -> str:
    """The one of tab, semicolon and comma that is most frequent in the first line."""
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _parquet(data: bytes, name: str) -> dict[str, list[str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"reading {name}", "hub") from error
    try:
        columns: dict[str, list[Any]] = parquet.read_table(io.BytesIO(data)).to_pydict()
    except Exception as error:  # pyarrow's own kinds
        raise DataError(f"cannot read {name} ({one_line(error)}); write it anew") from error
    return {
        column: ["" if value is None or isinstance(value, dict) else str(value) for value in values]
        for column, values in columns.items()
    }
