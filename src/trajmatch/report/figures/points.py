"""What a study measured for one variant at one place of its axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trajmatch.storage.results import Sample
from trajmatch.units import NBSP, Real, number, percent

Place = str | int | float | bool | None
"""A value on an axis."""


@dataclass(frozen=True)
class Point:
    """One variant at one place, over its seeds or its networks."""

    variant: str
    at: Mapping[str, Place]
    """Axis -> place."""
    sample: Sample
    """With a mean of None where nothing was measured."""
    failed: int = 0
    """Cells of the variant that failed."""
    untested: bool = False
    """Whether it was not to be measured: other settings of its method were chosen."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that differ from the base of the study."""

    @property
    def done(self) -> bool:
        return self.sample.mean is not None

    @property
    def words(self) -> str:
        """`88.7 ± 1.2 %`, or why there is no accuracy."""
        return accuracy_words(self.sample) if self.done else self.absent

    @property
    def absent(self) -> str:
        """Why there is no number."""
        return "not tested" if self.untested else "failed"

    @property
    def mean(self) -> float:
        """Of a point that is `done`."""
        assert self.sample.mean is not None
        return self.sample.mean

    @property
    def sd(self) -> float:
        """0 where there is none."""
        return self.sample.sd or 0.0

    def number_at(self, axis: str) -> Real:
        """The place on a numeric axis."""
        value = self.at.get(axis)
        return value if isinstance(value, int | float) else 0


def accuracy_words(sample: Sample) -> str:
    """`88.7 ± 1.2 %`."""
    return "failed" if sample.mean is None else f"{percent(sample.mean, sample.sd)}{NBSP}%"


def place_words(value: Place) -> str:
    """A place on an axis, as text.

    Examples:
        >>> place_words(0.0300), place_words("dm")
        ('0.03', 'dm')
    """
    return number(value) if isinstance(value, Real) else str(value)


def places(points: tuple[Point, ...], axis: str) -> list[Place]:
    """The places of points on an axis: numbers in order, texts as they come."""
    found = list(dict.fromkeys(point.at.get(axis) for point in points))
    numeric = [value for value in found if isinstance(value, int | float)]
    return list[Place](sorted(numeric)) if len(numeric) == len(found) else found
