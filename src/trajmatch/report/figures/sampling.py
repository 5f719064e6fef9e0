"""Fewer points that look like all of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TypeVar

from trajmatch.units import Real

DRAWN = 300
"""Points of a line; more than the pixels that show them."""

T = TypeVar("T")


def every(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly chosen, the last always among them.

    Examples:
        >>> every(range(10), 4)
        [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def extremes(points: list[tuple[int, Real]]) -> list[tuple[int, Real]]:
    """Lowest and highest of each of DRAWN stretches: the outline of a line of all points."""
    if len(points) <= 2 * DRAWN:
        return points
    found: list[tuple[int, Real]] = []
    for i in range(DRAWN):
        stretch = points[i * len(points) // DRAWN : (i + 1) * len(points) // DRAWN]
        found += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return found


def running_median(values: Sequence[Real], window: int, centers: Sequence[int]) -> list[Real]:
    """The median of the `window` values around each center; of fewer at both ends."""
    half = window // 2
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in centers]
