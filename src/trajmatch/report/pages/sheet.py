"""A contact sheet: an image of each class from every method, one below the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trajmatch.errors import DataError, FileFormatError
from trajmatch.report.figures.pictures import (
    GALLERY_BYTES,
    Picture,
    enlarged,
    pictures_of,
    png,
    smaller,
)
from trajmatch.report.figures.sampling import every
from trajmatch.synthetic import SyntheticSet
from trajmatch.synthetic.pictures import data_url
from trajmatch.units import Real

COLUMNS = 20
"""Classes that are shown at most."""
_SIDE, _TARGET = 64, 56
"""Pixels of a picture at most, and about how large it is shown."""


@dataclass(frozen=True)
class Strip:
    """One method's pictures, one for each class that is shown; None where it has none of it."""

    method: str
    pictures: tuple[Picture | None, ...]


@dataclass(frozen=True)
class Sheet:
    """Methods below one another, by images per class; sizes in CSS pixels."""

    classes: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Strip, ...]], ...]
    width: int
    height: int
    note: str
    """What is left out or made smaller; empty when nothing is."""
    problems: tuple[str, ...]


def contact_sheet(
    folders: Sequence[tuple[str, str, Path]], *, budget: int = GALLERY_BYTES
) -> Sheet | None:
    """The first image of each class of the sets in `folders`: (group, method, folder of a set).

    Folders that hold no set are named in `note`, damaged sets in `problems`. None when there is no
    set. At most 20 classes, evenly chosen, and `budget` bytes of raw pixels are shown.
    """
    sets: list[tuple[str, str, SyntheticSet]] = []
    absent, problems = [], []
    for group, method, folder in folders:
        if not (folder / "distilled.json").is_file():
            absent.append(f"{method} ({group})")
            continue
        try:
            sets.append((group, method, SyntheticSet.load(folder)))
        except (FileFormatError, DataError) as error:
            problems.append(str(error))
    if not sets:
        return Sheet((), (), 1, 1, "", tuple(problems)) if problems else None
    classes = sets[0][2].classes
    shown = every(range(len(classes)), COLUMNS)
    each = budget / (len(sets) * len(shown))
    sizes, groups = list[tuple[int, int, int]](), dict[str, list[Strip]]()
    for group, method, distilled in sets:
        found, size = _strip(group, method, distilled, shown, each)
        sizes.append(size)
        groups.setdefault(group, []).append(found)
    factor, width, height = max(size[0] for size in sizes), *sizes[0][1:]
    notes = []
    if len(shown) < len(classes):
        notes.append(f"{len(shown)} of {len(classes)} classes are shown.")
    if factor > 1:
        notes.append(f"Shown at down to 1/{factor} of their resolution.")
    if absent:
        notes.append(f"Not saved, so not shown: {', '.join(absent)}.")
    return Sheet(
        tuple(classes[index] for index in shown),
        tuple((group, tuple(strips)) for group, strips in groups.items()),
        width,
        height,
        " ".join(notes),
        tuple(problems),
    )


def _strip(
    group: str, method: str, distilled: SyntheticSet, shown: Sequence[int], each: Real
) -> tuple[Strip, tuple[int, int, int]]:
    """The first picture of each class in `shown`, of at most `each` bytes; by what factor they were
    made smaller, and the CSS (width, height) they are shown at."""
    pixels, labels = pictures_of(distilled)
    hard = (labels.argmax(1) if labels.ndim == 2 else labels).tolist()
    wanted = max(pixels.shape[2:]) / _SIDE, math.sqrt(pixels[0].numel() / each), 1.0
    factor = math.ceil(max(wanted))
    pictures: list[Picture | None] = []
    for index in shown:
        if index in hard:
            first = hard.index(index)
            picture = smaller(pixels[first : first + 1], factor)[0]
            alt = f"{distilled.classes[index]}, {method}, {group}"
            pictures.append(Picture(data_url(png(picture)), alt, ""))
        else:
            pictures.append(None)
    return Strip(method, tuple(pictures)), (factor, *enlarged(smaller(pixels[:1], factor), _TARGET))
