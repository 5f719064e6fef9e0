"""A value over a number, one line a series."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.points import Point, accuracy_words
from trajmatch.report.figures.theme import (
    FINE,
    KINDS,
    SIZE,
    SOFT,
    Layout,
    baseline,
    clear,
    shown,
    spread,
    tag,
    y_grid,
)
from trajmatch.units import NBSP, Real, number

_RIGHT, _NAMES = 348, 72
"""Where the frame ends, and the width kept free for the names of several lines."""


@dataclass(frozen=True)
class Lines(Figure):
    """Values over a number on a logarithmic axis; standard deviations as bars."""

    name: str
    title: str
    x: str
    """The number, as `at` of a point calls it."""
    words: str
    """What its axis is called."""
    series: Mapping[str, tuple[Point, ...]]
    """Points that are done, by the name of the line ("" where there is but one)."""
    level: tuple[Real, str] | None = None
    """A value worth a line of its own, and what it means; the frame then begins at 0."""
    accuracy: bool = True
    """Whether values are accuracies, which are written with one decimal."""

    def frame(self) -> list[Row]:
        return [
            ({"series": name} if name else {})
            | {self.x: point.at[self.x], "mean": point.mean, "sd": point.sample.sd}
            | {"n": point.sample.n, "values": list(point.sample.values)}
            for name, points in self.series.items()
            for point in points
        ]

    def summary(self) -> str:
        texts = []
        for name, points in self.series.items():
            ends = points[:1] if len(points) == 1 else (points[0], points[-1])
            text = ", ".join(f"{self._words(point)} at {self._place(point)}" for point in ends)
            texts.append(f"{name}: {text}" if name else text)
        return "; ".join(texts) + "."

    def layout(self) -> Layout:
        right = _RIGHT - _NAMES if len(self.series) > 1 else _RIGHT
        return Layout(width=360, height=212, left=46, right=right, top=20, bottom=180)

    def _draw(self, axes: Any) -> None:
        clear(axes)
        baseline(axes, self.words)
        found = [point for points in self.series.values() for point in points]
        marks = sorted({point.number_at(self.x) for point in found})
        axes.set_xscale("log")
        room = (marks[-1] / marks[0]) ** 0.06 if len(marks) > 1 else 2.0
        axes.set_xlim(marks[0] / room, marks[-1] * room)
        axes.set_xticks(marks, [number(value) for value in marks])
        axes.minorticks_off()
        y_grid(axes, *self._limits())
        if self.level is not None:
            value, meaning = self.level
            axes.axhline(value, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
            note = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            style = {"color": SOFT, "fontsize": FINE, "zorder": 1.5}  # below the lines
            tag(axes.annotate(shown(meaning), (0, value), (4, 4), **note, **style), "note")
        for index, points in enumerate(self.series.values()):
            self._line(axes, index, points)
        self._names(axes)

    def _line(self, axes: Any, index: int, points: Sequence[Point]) -> None:
        color, _, dashes = KINDS[index % len(KINDS)]
        x, y = [point.number_at(self.x) for point in points], [point.mean for point in points]
        axes.plot(x, y, color=color, linestyle=dashes, linewidth=1.8)
        for point in points:
            across = point.number_at(self.x)
            spread(axes, across, point.mean, point.sample.sd, color)
            (dot,) = axes.plot(across, point.mean, "o", color=color, markersize=6)
            tag(dot, "dot", f"{self._place(point)}: {self._words(point)}")

    def _names(self, axes: Any) -> None:
        """The name of each line beside its end."""
        high = axes.bbox.height * 72 / axes.figure.dpi
        low, top = axes.get_ylim()
        ends = [high * (points[-1].mean - low) / (top - low) for points in self.series.values()]
        note = {"xycoords": "axes points", "va": "center", "annotation_clip": False}
        wide = axes.bbox.width * 72 / axes.figure.dpi
        for index, (name, y) in enumerate(zip(self.series, _apart(ends), strict=True)):
            color = KINDS[index % len(KINDS)][0]
            style = {"color": color, "fontsize": SIZE}
            tag(axes.annotate(shown(name, 14), (wide + 6, y), **note, **style), "name", name)

    def _place(self, point: Point) -> str:
        """`N = 20`: the axis by the first words of its name."""
        place = number(point.number_at(self.x))
        return f"{self.words.split(',')[0]}{NBSP}={NBSP}{place}"

    def _limits(self) -> tuple[Real, Real]:
        found = [point for points in self.series.values() for point in points]
        low = min(point.mean - point.sd for point in found)
        high = max(point.mean + point.sd for point in found)
        if self.level is not None:
            low, high = min(0.0, low), max(self.level[0], high)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return (low - room if low else low), high + room

    def _words(self, point: Point) -> str:
        """`88.7 ± 1.2 %`, or `0.62 ± 0.04`."""
        if self.accuracy:
            return accuracy_words(point.sample)
        sd = point.sample.sd
        return number(point.mean) + ("" if sd is None else f"{NBSP}±{NBSP}{number(sd, 2)}")


def _apart(heights: Sequence[Real], least: Real = 12) -> list[Real]:
    """Heights of names, moved up where they would overlap."""
    moved = list(heights)
    for below, above in itertools.pairwise(sorted(range(len(moved)), key=lambda i: moved[i])):
        moved[above] = max(moved[above], moved[below] + least)
    return moved
