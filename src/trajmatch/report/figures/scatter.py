"""An accuracy over its cost, a named point each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.labels import Box, place
from trajmatch.report.figures.points import Place, accuracy_words
from trajmatch.report.figures.theme import (
    BACKGROUND,
    KINDS,
    LETTER,
    SOFT,
    Layout,
    baseline,
    clear,
    shown,
    spread,
    tag,
    y_grid,
)
from trajmatch.storage.results import Sample
from trajmatch.units import NBSP, Real, number

_LAYOUT = Layout(width=640, height=360, left=42, right=630, top=26, bottom=318)
"""Wider than the other figures: every point has its name beside it."""
_MARK, _NAME, _LINE = 7.2, 9, 10
"""Size of a mark, of a name's letters, and the height of a name."""
_MOST = 24
"""Letters of a name."""


@dataclass(frozen=True)
class CostPoint:
    """One accuracy and its cost."""

    label: str
    at: Mapping[str, Place]
    """What the frame says of it."""
    cost: Real
    sample: Sample
    """With a mean."""

    @property
    def mean(self) -> float:
        assert self.sample.mean is not None
        return self.sample.mean


@dataclass(frozen=True)
class Scatter(Figure):
    """Accuracies in percent over a cost on a logarithmic axis; standard deviations as bars."""

    name: str
    title: str
    x: str
    """The cost, as the frame calls it."""
    words: str
    """What its axis is called, such as "making time, s"."""
    series: Mapping[str, tuple[CostPoint, ...]]
    """By the name of the series ("" where there is but one)."""
    least: Real = 1e-3
    """Lower costs are drawn here: a logarithmic axis has no 0."""

    kind = "scatter"

    def frame(self) -> list[Row]:
        return [
            {**point.at, self.x: point.cost, "mean": point.mean}
            | {"sd": point.sample.sd, "n": point.sample.n}
            for points in self.series.values()
            for point in points
        ]

    def summary(self) -> str:
        texts = []
        for name, points in self.series.items():
            best = max(points, key=lambda point: point.mean)
            first = min(points, key=lambda point: point.cost)
            text = f"highest {self._words(best)}"
            if first is not best:
                text += f", cheapest {self._words(first)}"
            texts.append(f"{name}: {text}" if name else text)
        text = "; ".join(texts) + "."
        return text[:1].upper() + text[1:]

    def layout(self) -> Layout:
        return _LAYOUT

    def _draw(self, axes: Any) -> None:
        clear(axes, _NAME)
        baseline(axes, self.words)
        low, high = self._costs()
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        marks = self._ticks(low, high)
        axes.set_xticks([value for value, _ in marks], [text for _, text in marks])
        axes.minorticks_off()
        axes.tick_params(axis="x", length=4, color=SOFT, pad=4)
        y_grid(axes, *self._limits())
        handles = [
            self._points(axes, index, points) for index, points in enumerate(self.series.values())
        ]
        self._names(axes)
        if any(self.series):
            axes.legend(
                handles,
                [shown(name) for name in self.series],
                loc="lower left",
                bbox_to_anchor=(-0.012, 1.0),
                ncols=len(handles),
                frameon=False,
                fontsize=_NAME,
                labelcolor="mfc",
                handletextpad=0.1,
                columnspacing=1.4,
                borderaxespad=0.2,
            )

    def _points(self, axes: Any, index: int, points: Sequence[CostPoint]) -> Any:
        """Marks and bars of one series; returns a mark for the legend."""
        color, mark, _ = KINDS[index % len(KINDS)]
        style = {"marker": mark, "linestyle": "none", "color": color, "markersize": _MARK}
        style |= {"markeredgecolor": BACKGROUND, "markeredgewidth": 0.8}
        for point in points:
            cost = max(self.least, point.cost)
            spread(axes, cost, point.mean, point.sample.sd, color)
            (dot,) = axes.plot(cost, point.mean, zorder=3, **style)
            tag(dot, "dot", self._words(point))
        return axes.plot([], [], **style)[0]

    def _names(self, axes: Any) -> None:
        """The name of each point near it, with a line to it where it stands apart."""
        scale = 72 / axes.figure.dpi
        corner, points = axes.bbox.p0, []
        for index, found in enumerate(self.series.values()):
            points += [(index, point) for point in found]
        boxes, taken = [], []
        for _, point in points:
            cost = max(self.least, point.cost)
            ends = [point.mean + side * (point.sample.sd or 0) for side in (-1, 0, 1)]
            spots = axes.transData.transform([(cost, y) for y in ends])
            (x, below), (_, y), (_, above) = (scale * (spots - corner)).tolist()
            half = _MARK / 2
            taken.append(Box(x - half, -y - half, x + half, half - y))
            if point.sample.sd:
                taken.append(Box(x - 1, -above, x + 1, -below))
            text = shown(point.label, _MOST)
            boxes.append((x, -y, LETTER * _NAME * len(text) + 1, _LINE))
        wide, high = (scale * side for side in axes.bbox.size)
        names = place(boxes, taken, Box(2, -high - 10, wide + 8, -2), gap=_MARK / 2 + 2.5)
        for (index, point), name in zip(points, names, strict=True):
            color = KINDS[index % len(KINDS)][0]
            note = {"xycoords": "axes points", "annotation_clip": False}
            style = {"color": color, "fontsize": _NAME, "zorder": 4}
            at = (name.left, -name.bottom + 2.2)
            tag(axes.annotate(shown(point.label, _MOST), at, **note, **style), "name")
            if name.leader is not None:
                (a, b), (c, d) = name.leader
                x, y = (a / wide, c / wide), (-b / high, -d / high)
                axes.plot(x, y, transform=axes.transAxes, color=SOFT, linewidth=0.6, alpha=0.7)

    def _words(self, point: CostPoint) -> str:
        """`dm: 88.7 ± 1.2 % at 12 s`, in the unit that the axis is called after its comma."""
        unit = self.words.partition(", ")[2]
        less = "less than " if point.cost < self.least else ""
        cost = f"{less}{number(max(self.least, point.cost))}{NBSP}{unit}".rstrip(NBSP)
        return f"{point.label}: {accuracy_words(point.sample)} at {cost}"

    def _all(self) -> list[CostPoint]:
        return [point for points in self.series.values() for point in points]

    def _costs(self) -> tuple[Real, Real]:
        """The ends of the x axis."""
        costs = [math.log(max(self.least, point.cost)) for point in self._all()]
        side = 0.04 * (max(costs) - min(costs)) or 1.0
        return math.exp(min(costs) - side), math.exp(max(costs) + side)

    def _limits(self) -> tuple[Real, Real]:
        found = self._all()
        low = min(point.mean - (point.sample.sd or 0.0) for point in found)
        high = max(point.mean + (point.sample.sd or 0.0) for point in found)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return low - room, high + room

    def _ticks(self, low: Real, high: Real) -> list[tuple[Real, str]]:
        """Powers of ten, and twice and five times those on a short axis."""
        steps = (1, 2, 5) if high / low < 300 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        below = any(point.cost < self.least for point in self._all())
        return [
            (value, ("≤" + NBSP) * (below and value <= self.least * 1.001) + number(value))
            for value in values
            if low <= value <= high
        ]
