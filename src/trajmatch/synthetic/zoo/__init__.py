"""Distilled sets that ship with the package, one folder each, found by name.

A folder is a set as `SyntheticSet.save` writes it, and `card.json`: data, network, ipc, accuracy
(mean and sd in percent, n networks), protocol, made (how), date. The whitening of each is a compact
form of the ZCA that its images were distilled in.
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
    """Names of the shipped sets, in alphabetical order.

    Examples:
        >>> names()
        ['cifar10-ipc1']
    """
    return sorted(path.parent.name for path in FOLDER.glob("*/card.json"))


def find(name: str) -> Path:
    """The folder of a set. Raises DataError, with the nearest name, for an unknown one."""
    if name not in names():
        known = suggest(name, names()) if names() else "no sets ship with this version"
        raise DataError(f"'{name}' is neither a folder nor a distilled set that ships; {known}")
    return FOLDER / name


def card(name: str) -> dict[str, Any]:
    """The card of a set: how it was distilled, and the accuracy of networks trained on it.

    Raises DataError for an unknown name, FileFormatError for a card that lacks an entry.

    Examples:
        >>> card("cifar10-ipc1")["ipc"]
        1
    """
    path = find(name) / "card.json"
    entries = read_json(path)
    try:
        score = entries["accuracy"]
        numbers = (score["mean"], score["sd"] or 0.0, score["n"], entries["ipc"])
        sound = all(isinstance(entries[name], str) for name in _TEXTS)
        if not (sound and all(isinstance(number, (int, float)) for number in numbers)):
            raise TypeError("texts or numbers expected")
    except (LookupError, TypeError) as error:
        raise FileFormatError(
            f"{path} is not a whole card ({error}); it needs {', '.join(_TEXTS)}, ipc, and "
            "accuracy with mean, sd and n"
        ) from error
    return dict(entries)


def accuracy_words(card: Mapping[str, Any]) -> str:
    """The accuracy on a card in percent, without the sd where one network was trained.

    Examples:
        >>> accuracy_words({"accuracy": {"mean": 41.23, "sd": 0.4, "n": 5}})
        '41.2 +- 0.4'
    """
    score = card["accuracy"]
    return f"{score['mean']:.1f}" + ("" if score["sd"] is None else f" +- {score['sd']:.1f}")
