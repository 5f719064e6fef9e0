"""Labels of the caller, numbers or names of classes -> class indices; and names of classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trajmatch.data.pixels import label_tensor
from trajmatch.errors import DataError, suggest
from trajmatch.types import Int, Tensor


@dataclass(frozen=True)
class _Names:
    """The labels of one split, as names of classes."""

    labels: list[str]
    order: list[str] | None
    """The classes in the caller's order, of a categorical; None: sorted."""


def class_names(classes: Any) -> tuple[str, ...]:
    """Names of classes as text. Numbers, NumPy strings and pandas categories become text.

    Raises DataError for a single text, an empty name, and a name given twice.

    Examples:
        >>> class_names([1, 2, "cat"])
        ('1', '2', 'cat')
    """
    given = getattr(classes, "categories", classes)
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise DataError(f"classes is {classes!r:.60}; give a list of names, one for each class")
    names = tuple(_text(name) for name in (given.tolist() if hasattr(given, "tolist") else given))
    for label, name in enumerate(names):
        if not name.strip():
            raise DataError(f"the name of class {label} is empty; give every class a name")
        if name in names[:label]:
            raise DataError(
                f"'{name}' is the name of class {names.index(name)} and of class {label}; give "
                "every class a name of its own"
            )
    return names


def class_indices(
    given: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[dict[str, Int[Tensor, "_"]], tuple[str, ...] | None]:
    """Class indices of the labels of each split, and the names of the classes.

    given: labels by role ("train", "test", "val"). Whole numbers are taken as they are; texts and
        categories (pandas) are names of classes, in the order of `classes`, else in that of the
        train categories, else sorted.
    classes: the names of all classes; None: those of the train labels, or None for numbers.

    Raises DataError for labels of another kind, for some splits with numbers and others with names,
    and for a name that is no class.

    Examples:
        >>> labels, names = class_indices({"train": ["dog", "cat"], "test": ["cat"]}, None)
        >>> names, labels["train"].tolist(), labels["test"].tolist()
        (('cat', 'dog'), [1, 0], [0])
    """
    named = {role: _names(labels, f"{role} labels") for role, labels in given.items()}
    texts = {role: names for role, names in named.items() if names is not None}
    if not texts:
        found = {role: label_tensor(labels, f"{role} labels") for role, labels in given.items()}
        return found, None if classes is None else tuple(classes)
    numbers = [role for role in given if role not in texts]
    if numbers:
        raise DataError(
            f"the {next(iter(texts))} labels are names and the {numbers[0]} labels numbers; give "
            "names for all, or numbers"
        )
    if classes is None:
        train = texts["train"]
        present = set(train.labels)
        order = sorted(present) if train.order is None else train.order
        classes = [name for name in order if name in present]
    number = {name: label for label, name in enumerate(classes)}
    for role, names in texts.items():
        strange = next((name for name in names.labels if name not in number), None)
        if strange is not None:
            raise DataError(
                f"a {role} label is '{strange}', which is no class; {suggest(strange, classes)}"
            )
    indices = {
        role: torch.tensor([number[name] for name in names.labels], dtype=torch.int64)
        for role, names in texts.items()
    }
    return indices, tuple(classes)


def _names(labels: Any, what: str) -> _Names | None:
    """The labels as names of classes; None where they are no texts and no categorical."""
    categorical = getattr(labels, "cat", labels)  # a pandas Series has it at .cat
    if hasattr(categorical, "categories") and hasattr(categorical, "codes"):
        order = [_text(name) for name in list(categorical.categories)]
        codes = np.asarray(categorical.codes)
        if (codes < 0).any():
            raise DataError(f"{what} lack a value at {int((codes < 0).argmax())}; fill it in")
        return _Names([order[code] for code in codes.tolist()], order)
    if isinstance(labels, Tensor):
        return None
    try:
        array: NDArray[Any] = np.asarray(labels)
    except (TypeError, ValueError):
        return None  # ragged: refused as numbers are
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    values = array.tolist() if array.dtype.kind in "OTUS" and array.ndim == 1 else []
    if values and isinstance(labels, (list, tuple)) and not isinstance(labels[0], (list, tuple)):
        values = list(labels)  # NumPy makes texts of numbers beside texts
    if not any(isinstance(value, (str, bytes)) for value in values):
        return None
    for place, value in enumerate(values):
        if not isinstance(value, (str, bytes)) or not _text(value).strip():
            raise DataError(f"{what} are names of classes but for {value!r} at {place}; give one")
    return _Names([_text(value) for value in values], None)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
