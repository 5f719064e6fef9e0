"""The entries of a JSON object, read with a check of type and range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from trajmatch.errors import FileFormatError
from trajmatch.storage.files import nested_deeper
from trajmatch.units import Real

Scalar = str | int | float | bool | None

DEPTH = 24
"""Levels of objects and lists within free-form entries such as settings."""
_LARGEST = 2**53
"""Counts beyond this are damage: JSON readers in other languages do not hold them exactly."""
_SHOWN = 40
_REPAIR = "restore the file from a copy, or run the command again"


@dataclass(frozen=True)
class Fields:
    """One JSON object and where it lies, for error messages.

    An absent entry and null are alike: both give the default. Every method raises FileFormatError
    for an entry of another type or outside its range.

    Examples:
        >>> fields = Fields({"n": 5, "mean": 63.1}, "result.json", "scores[0]")
        >>> fields.count("n"), fields.number("mean", 0, 100), fields.text("model", "unknown")
        (5, 63.1, 'unknown')
    """

    values: Mapping[str, Any]
    file: str
    """The file (and line), as an error message begins."""
    place: str = ""
    """The object within the file, such as `scores[0]`; empty for the outermost."""

    @classmethod
    def of(cls, values: Any, file: str, place: str = "") -> Fields:
        """`values` as an object. Raises FileFormatError when it is none."""
        if not isinstance(values, Mapping):
            raise FileFormatError(
                f"{file}: {place or 'the content'} is {_shown(values)} where an object belongs; "
                f"{_REPAIR}"
            )
        return cls(values, file, place)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def where(self, name: str) -> str:
        return f"{self.place}.{name}" if self.place else name

    def refuse(self, name: str, wanted: str) -> NoReturn:
        """Raise FileFormatError: the entry `name` is not `wanted`."""
        found = _shown(self.values[name]) if name in self.values else "absent"
        raise FileFormatError(
            f"{self.file}: {self.where(name)} is {found} where {wanted} belongs; {_REPAIR}"
        )

    def text(self, name: str, default: str = "") -> str:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            self.refuse(name, "a text")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def number(self, name: str, low: Real = -math.inf, high: Real = math.inf) -> float | None:
        """A finite number in [low, high]."""
        value = self.values.get(name)
        if value is None:
            return None
        if not _is_number(value) or not low <= value <= high:
            self.refuse(name, _number_words(low, high))
        return float(value)

    def require_number(self, name: str, low: Real = -math.inf, high: Real = math.inf) -> float:
        value = self.number(name, low, high)
        if value is None:
            self.refuse(name, _number_words(low, high))
        return value

    def count(self, name: str, low: int = 0) -> int | None:
        """A whole number, at least `low`."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= _LARGEST:
            self.refuse(name, f"a whole number of at least {low}")
        return int(value)

    def require_count(self, name: str, low: int = 0) -> int:
        value = self.count(name, low)
        if value is None:
            self.refuse(name, f"a whole number of at least {low}")
        return value

    def numbers(self, name: str, low: Real = -math.inf, high: Real = math.inf) -> tuple[float, ...]:
        """A list of finite numbers in [low, high]; empty where absent."""
        values = self.items(name)
        if not all(_is_number(value) and low <= value <= high for value in values):
            self.refuse(name, f"a list with {_number_words(low, high)} in each place")
        return tuple(map(float, values))

    def numbers_or_none(
        self, name: str, low: Real = -math.inf, high: Real = math.inf
    ) -> tuple[float | None, ...]:
        """As `numbers`, with None in the places that hold null."""
        values = self.items(name)
        given = [value for value in values if value is not None]
        Fields({name: given}, self.file, self.place).numbers(name, low, high)
        return tuple(None if value is None else float(value) for value in values)

    def counts(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers of at least 0; empty where absent."""
        values = self.items(name)
        if not all(type(value) is int and 0 <= value <= _LARGEST for value in values):
            self.refuse(name, "a list of whole numbers of at least 0")
        return tuple(values)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.items(name)
        if not all(isinstance(value, str) for value in values):
            self.refuse(name, "a list of texts")
        return tuple(values)

    def items(self, name: str) -> list[Any]:
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            self.refuse(name, "a list")
        return list(value)

    def inner(self, name: str) -> Fields | None:
        """The object under `name`."""
        value = self.values.get(name)
        return None if value is None else Fields.of(value, self.file, self.where(name))

    def inners(self, name: str) -> list[Fields]:
        """The objects of the list under `name`."""
        return [
            Fields.of(value, self.file, f"{self.where(name)}[{index}]")
            for index, value in enumerate(self.items(name))
        ]

    def scalars(self, name: str) -> dict[str, Scalar]:
        """An object of texts, finite numbers, truth values and null."""
        inner = self.inner(name)
        if inner is None:
            return {}
        for key, value in inner.values.items():
            if not (value is None or isinstance(value, str | bool) or _is_number(value)):
                inner.refuse(key, "a text or number")
        return dict(inner.values)

    def tree(self, name: str) -> Mapping[str, Any]:
        """A free-form object, such as settings, of at most DEPTH levels."""
        inner = self.inner(name)
        if inner is None:
            return {}
        if nested_deeper(inner.values, DEPTH):
            raise FileFormatError(
                f"{self.file}: {self.where(name)} is nested more than {DEPTH} levels deep; "
                f"{_REPAIR}"
            )
        return inner.values

    def network(self, name: str) -> str:
        """A network by its description; version 0.1 also wrote a table of its settings."""
        if isinstance(self.values.get(name), Mapping):
            inner = self.inner(name)
            return inner.text("name") if inner is not None else ""
        return self.text(name)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _number_words(low: Real, high: Real) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a finite number"
    if math.isinf(high):
        return f"a number of at least {low:g}"
    return f"a number from {low:g} to {high:g}"


def _shown(value: Any) -> str:
    """`value` in one short line."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
