"""A value over the iterations of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.sampling import DRAWN, every, extremes, running_median
from trajmatch.report.figures.theme import (
    ACCENT,
    FINE,
    INK,
    SOFT,
    WARM,
    Layout,
    baseline,
    clear,
    shown,
    tag,
    ticks,
    y_grid,
)
from trajmatch.units import Real, number, percent

_LAYOUT = Layout(width=360, height=212, left=46, right=348, top=20, bottom=180)
"""Near the width of a phone, where text is then seen at its own size."""
_DOTTED = 60
"""Up to so many evaluations are marked one by one."""


@dataclass(frozen=True)
class Curve(Figure):
    """A value over iterations, with its spread, the skipped updates and the chosen iteration."""

    name: str
    title: str
    steps: tuple[int, ...]
    values: tuple[Real, ...]
    """One a step; values that are not finite are left out of the drawing and stay in the frame."""
    sd: tuple[Real | None, ...] | None = None
    """Standard deviation of each value: drawn as a band."""
    n: int | None = None
    """Networks behind each value."""
    skipped: tuple[int, ...] = ()
    """Iterations whose update was skipped."""
    chosen: int | None = None
    """The iteration whose set was chosen."""
    noisy: bool = False
    """Draw single values faintly and a running median over them."""
    level: tuple[Real, str] | None = None
    """A value worth a line of its own, and what it means."""
    unit: str = ""

    def frame(self) -> list[Row]:
        skipped = set(self.skipped)
        rows: list[Row] = []
        for i, (step, value) in enumerate(zip(self.steps, self.values, strict=True)):
            row: Row = {"iteration": step, self.name: value}
            if self.sd is not None:
                row |= {"sd": self.sd[i], "n": self.n}
            if self.noisy:
                row["skipped"] = int(step in skipped)
            rows.append(row)
        return rows

    def summary(self) -> str:
        points = self.points()
        if not points:
            return "No finite value was logged."
        (_, first), (last_step, last) = points[0], points[-1]
        if self.sd is not None:
            best = max(range(len(self.values)), key=lambda i: _or_low(self.values[i]))
            count = len(points)
            among = f"the best of {count} evaluations" if count > 1 else "the only evaluation"
            nets = f", {self.n} networks each" if self.n else ""
            return (
                f"{percent(self.values[best], self.sd[best])}{self.unit} at iteration "
                f"{self.steps[best]:,}, {among}{nets}."
            )
        if self.noisy:
            smooth = self._smooth(points)
            first, last = smooth[0][1], smooth[-1][1]
        text = f"From {number(first)}{self.unit} to {number(last)}{self.unit}"
        text += f" at iteration {last_step:,}"
        if self.noisy and self._window(points) > 1:
            text += f" (running median over {self._window(points)})"
        count = len(set(self.skipped))
        if count:
            text += f"; {count:,} update{'s' if count > 1 else ''} skipped, marked at the top"
        _, above = self._limits(points)
        count = sum(value > above for _, value in points)
        if count:
            text += f"; {count:,} value{'s' if count > 1 else ''} above the frame"
        return text + "."

    def layout(self) -> Layout:
        return _LAYOUT

    def svg(self) -> str:
        """As of any figure; empty where no value is finite."""
        return super().svg() if self.points() else ""

    def _draw(self, axes: Any) -> None:
        points = self.points()
        clear(axes)
        baseline(axes, "iteration")
        if not points:
            return
        (x0, x1), limits = self._range(), self._limits(points)
        axes.set_xlim(x0, x1)
        marks = ticks(x0, x1, integers=True)
        axes.set_xticks([value for value, _ in marks], [text for _, text in marks])
        y_grid(axes, *limits)
        self._draw_level(axes, limits)
        self._draw_skipped(axes)
        self._draw_chosen(axes)
        line = points
        if self.sd is not None:
            self._draw_spread(axes, limits)
        elif self.noisy:
            steps, values = _within(extremes(points), limits)
            axes.plot(steps, values, color=ACCENT, alpha=0.36, linewidth=0.8)
            line = self._smooth(points)
        steps, values = _within(every(line, DRAWN), limits)
        axes.plot(steps, values, color=ACCENT, linewidth=1.8)
        if len(points) == 1:
            axes.plot(*points[0], "o", color=ACCENT, markersize=5.2, markeredgewidth=0)

    def _draw_level(self, axes: Any, limits: tuple[Real, Real]) -> None:
        if self.level is None or not limits[0] < self.level[0] < limits[1]:
            return
        value, meaning = self.level
        axes.axhline(value, color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        note = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        style = {"ha": "right", "color": SOFT, "fontsize": FINE}
        tag(axes.annotate(shown(meaning), (1, value), (0, 4), **note, **style), "note")

    def _draw_skipped(self, axes: Any) -> None:
        """A stroke above the frame for every skipped update."""
        for step in every(sorted(set(self.skipped)), DRAWN):
            (stroke,) = axes.plot(
                [step, step],
                [1.006, 1.05],
                transform=axes.get_xaxis_transform(),
                color=WARM,
                linewidth=1.4,
                clip_on=False,
            )
            tag(stroke, "skip", f"update skipped at iteration {step:,}")

    def _draw_chosen(self, axes: Any) -> None:
        x0, x1 = self._range()
        if self.chosen is None or not x0 <= self.chosen <= x1:
            return
        line = axes.axvline(self.chosen, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        tag(line, "chosen")
        # Written on the side with more room.
        late = self.chosen > (x0 + x1) / 2
        style = {"ha": "right" if late else "left", "color": INK, "fontsize": FINE}
        note = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        place = (-4 if late else 4, 6)
        tag(axes.annotate("chosen", (self.chosen, 0), place, **note, **style), "note")

    def _draw_spread(self, axes: Any, limits: tuple[Real, Real]) -> None:
        finite = [triple for triple in self._triples() if math.isfinite(triple[1])]
        edge = [(s, v + (d or 0)) for s, v, d in finite]
        edge += [(s, v - (d or 0)) for s, v, d in reversed(finite)]
        axes.fill(*_within(edge, limits), color=ACCENT, alpha=0.16, linewidth=0)
        for step, value, sd in finite if len(finite) <= _DOTTED else ():
            (dot,) = axes.plot(step, value, "o", color=ACCENT, markersize=5.2, markeredgewidth=0)
            tag(dot, "dot", f"iteration {step:,}: {percent(value, sd)}{self.unit}")

    def _finish(self, root: Element) -> None:
        """What the page's script needs to show the value nearest to the pointer."""
        x0, x1 = self._range()
        readings = [
            [step, percent(value, sd) if self.sd is not None else number(value, 4)]
            for step, value, sd in every(self._triples(), DRAWN)
        ]
        root.set("data-x", f"{x0} {x1} {_LAYOUT.left} {_LAYOUT.right}")
        root.set("data-unit", self.unit)
        root.set("data-points", json.dumps(readings, separators=(",", ":")))
        path = f"M0 {_LAYOUT.top}V{_LAYOUT.bottom}"
        SubElement(root, "path", {"class": "cursor", "d": path, "visibility": "hidden"})

    def _range(self) -> tuple[int, int]:
        """The ends of the x axis: all curves begin at 0, to be read side by side."""
        first, last = min(0, *self.steps), max(self.steps)
        return first, last if last > first else first + 1

    def points(self) -> list[tuple[int, Real]]:
        """The points of the line: finite values of updates that were not skipped."""
        left_out = set(self.skipped)
        pairs = zip(self.steps, self.values, strict=True)
        return [(s, v) for s, v in pairs if math.isfinite(v) and s not in left_out]

    def _spread(self) -> list[Real | None]:
        return list(self.sd) if self.sd is not None else [None] * len(self.steps)

    def _triples(self) -> list[tuple[int, Real, Real | None]]:
        return list(zip(self.steps, self.values, self._spread(), strict=True))

    def _smooth(self, points: list[tuple[int, Real]]) -> list[tuple[int, Real]]:
        centers = every(range(len(points)), DRAWN)
        middle = running_median([value for _, value in points], self._window(points), centers)
        return [(points[i][0], value) for i, value in zip(centers, middle, strict=True)]

    def _window(self, points: Sequence[Any]) -> int:
        return 1 + 2 * (len(points) // 40)

    def _limits(self, points: list[tuple[int, Real]]) -> tuple[Real, Real]:
        """The frame: all values, but a few far outliers of a noisy curve lie above it."""
        values = sorted(value for _, value in points)
        low, high = values[0], values[-1]
        if self.sd is not None:
            pairs = list(zip(self.values, self._spread(), strict=True))
            low = min(v - (d or 0) for v, d in pairs if math.isfinite(v))
            high = max(v + (d or 0) for v, d in pairs if math.isfinite(v))
        elif self.noisy:
            usual = values[min(len(values) - 1, int(0.97 * len(values)))]
            high = min(high, usual + 0.35 * (usual - low)) if usual > low else high
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return low - room, high + room


def _within(
    points: Sequence[tuple[Real, Real]], limits: tuple[Real, Real]
) -> tuple[list[Real], list[Real]]:
    """x and y of points, those beyond the limits moved onto them."""
    low, high = limits
    return [x for x, _ in points], [min(high, max(low, y)) for _, y in points]


def _or_low(value: Real) -> Real:
    return value if math.isfinite(value) else -math.inf
