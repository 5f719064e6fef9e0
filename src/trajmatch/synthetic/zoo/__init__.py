"""Distilled sets that ship with the package, one folder each, found by name.

A folder is a set as `SyntheticSet.save` writes it, and `card.json`, which says what the set is
worth: data, network, ipc, accuracy (mean and sd in percent, n networks), protocol, made (how),
date. Test images are whitened by a compact form of the ZCA that the images were made in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajmatch.errors import DataError, FileFormatError, suggest
from trajmatch.storage.files import read_json

FOLDER = Path(__file__).parent

_TEXTS = ("data", "network", "protocol", "made", "date")


def names() -> list[str]:
    """The sets there are, in alphabetical order."""
    return sorted(path.parent.name for path in FOLDER.glob("*/card.json"))


def find(name: str) -> Path:
    """The folder of a set. Raises DataError, with the nearest name, for an unknown one."""
    if name not in names():
        known = suggest(name, names()) if names() else "no sets ship with this version"
        raise DataError(f"'{name}' is neither a folder nor a distilled set that ships; {known}")
    return FOLDER / name


def card(name: str) -> dict[str, Any]:
    """What a set is worth. Raises DataError for an unknown name, FileFormatError for a card that
    lacks an entry."""
    path = find(name) / "card.json"
    found = read_json(path)
    try:
        score = found["accuracy"]
        numbers = (score["mean"], score["sd"] or 0.0, score["n"], found["ipc"])
        sound = all(isinstance(found[entry], str) for entry in _TEXTS)
        if not (sound and all(isinstance(number, (int, float)) for number in numbers)):
            raise TypeError("texts or numbers expected")
    except (LookupError, TypeError) as error:
        raise FileFormatError(
            f"{path} is not a whole card ({error}); it needs {', '.join(_TEXTS)}, ipc, and "
            "accuracy with mean, sd and n"
        ) from error
    return dict(found)


def accuracy_words(card: Mapping[str, Any]) -> str:
    """`41.2 +- 0.4` of a card, in percent; without the sd where one network was trained."""
    score = card["accuracy"]
    return f"{score['mean']:.1f}" + ("" if score["sd"] is None else f" +- {score['sd']:.1f}")
