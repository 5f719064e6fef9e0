"""Restriction to chosen classes: their names, and their images alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import torch

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.errors import DataError, suggest


def choose(found: Sequence[str], wanted: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """The classes `wanted`, in that order; None: all that were `found`.

    Raises DataError for fewer than two, a class given twice, or one that `where` (a folder, a data
    set) does not have.
    """
    if wanted is None:
        return tuple(found)
    if not wanted:
        raise DataError("the list of classes is empty; name some, or leave it out for all")
    for i, name in enumerate(wanted):
        if name in wanted[:i]:
            raise DataError(f"class '{name}' is chosen twice; name each class once")
        if name not in found:
            near = difflib.get_close_matches(name, found, n=5) or found[:20]
            raise DataError(f"{where} has no class '{name}'; {suggest(name, near)}")
    if len(wanted) < 2:
        raise DataError(
            f"one class is chosen, '{wanted[0]}', and there is no other to tell it from; choose at "
            "least two"
        )
    return tuple(wanted)


def restricted(dataset: ImageDataset, classes: Sequence[str] | None) -> ImageDataset:
    """Only the images of these classes, which become class 0, 1, ... in this order; None: all.

    Raises DataError for a class that the data set does not have, or one given twice.
    """
    if classes is None:
        return dataset
    chosen = choose(dataset.classes, classes, dataset.name)
    return replace(
        dataset,
        train=renumbered(dataset.train, dataset.classes, chosen),
        test=renumbered(dataset.test, dataset.classes, chosen),
        val=None if dataset.val is None else renumbered(dataset.val, dataset.classes, chosen),
        classes=chosen,
    )


def renumbered(split: Split, classes: Sequence[str], chosen: Sequence[str]) -> Split:
    """The images of the `chosen` ones of `classes`, labeled by their place among them."""
    number = torch.full((len(classes),), -1)
    number[[classes.index(name) for name in chosen]] = torch.arange(len(chosen))
    labels = number[split.labels]
    wanted = labels >= 0
    return Split(split.images[wanted], labels[wanted])
