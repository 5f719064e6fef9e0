"""Figures as values: the numbers behind (`frame`), the page's SVG (`svg`), a paper's plot (`plot`).

The SVG is drawn by hand: it takes its colors from the page, so it is readable in light and in dark,
its text stays text, and a curve of 5000 iterations costs some ten kilobytes.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from trajmatch.errors import MissingExtraError
from trajmatch.report.figures.axes import (
    BOTTOM,
    DRAWN,
    END,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    every,
    extremes,
    grid,
    path,
    running_median,
)
from trajmatch.units import Real, number, percent

Row = dict[str, Any]

_CSV_ROWS = 2500


class Figure(ABC):
    """One figure: `title`, a `summary` in words (it serves as the alternative text), and the rest.

    `name` is a word usable in a file name.
    """

    name: str
    title: str

    @abstractmethod
    def frame(self) -> list[Row]:
        """The numbers behind, a dict a row; `pandas.DataFrame(figure.frame())` takes them."""

    @abstractmethod
    def summary(self) -> str:
        """What is to be seen, in a sentence."""

    @abstractmethod
    def svg(self) -> str:
        """An inline SVG element colored by the page's style sheet."""

    @abstractmethod
    def _draw(self, axes: Any) -> None: ...

    def plot(self) -> Any:
        """A matplotlib `Figure` for a paper or a notebook; `.savefig(path)` writes it.

        Raises MissingExtraError without matplotlib.
        """
        try:
            from matplotlib.figure import Figure as Canvas
        except ImportError as error:
            raise MissingExtraError("plot", "report") from error
        canvas = Canvas(figsize=(4.4, 2.9), layout="constrained")
        axes = canvas.subplots()
        axes.set_title(textwrap.fill(self.title, 52), loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        self._draw(axes)
        return canvas

    def thinned(self) -> tuple[list[Row], int]:
        """Rows for the page's CSV, at most 2500, and the stride they were taken with (1: all)."""
        rows = self.frame()
        stride = -(-len(rows) // _CSV_ROWS) if rows else 1
        return rows[::stride], stride

    def csv_url(self) -> str:
        """A data: address with the (thinned) rows as CSV, floats to six digits."""
        return csv_url(self.thinned()[0])


@dataclass(frozen=True)
class Curve(Figure):
    """A value over iterations, with what spread, which updates were skipped, which was chosen."""

    name: str
    title: str
    steps: tuple[int, ...]
    values: tuple[Real, ...]
    """One a step; values that are not finite are left out of the drawing and kept in the frame."""
    sd: tuple[Real | None, ...] | None = None
    """Standard deviation of each value: drawn as a band."""
    n: int | None = None
    """Networks behind each value."""
    skipped: tuple[int, ...] = ()
    """Iterations whose update was skipped."""
    chosen: int | None = None
    """The iteration whose images are kept."""
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

    def svg(self) -> str:
        points = self.points()
        if not points:
            return ""
        x0, x1 = min(0, *self.steps), max(self.steps)  # all from 0, to be read side by side
        low, high = self._limits(points)
        x = Scale(x0, x1 if x1 > x0 else x0 + 1, LEFT, RIGHT)
        y = Scale(low, high, BOTTOM, TOP)
        reading = json.dumps(
            [
                [step, percent(value, sd) if self.sd is not None else number(value, 4)]
                for step, value, sd in every(self._triples(), DRAWN)
            ],
            separators=(",", ":"),
        )
        parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}. {escape(self.summary())}" '
            f'data-x="{x0} {x.high} {LEFT} {RIGHT}" data-unit="{escape(self.unit)}" '
            f'data-points="{escape(reading)}">'
        ]
        parts += grid(x, y)
        if self.level is not None and low < self.level[0] < high:
            at, meaning = y(self.level[0]), escape(self.level[1])
            parts.append(f'<path class="level" d="M{LEFT} {at}H{RIGHT}"/>')
            parts.append(f'<text class="note" x="{RIGHT}" y="{at - 4:.1f}" {END}>{meaning}</text>')
        parts += [
            f'<path class="skip" d="M{x(step)} {TOP - 8}v7"><title>update skipped at iteration '
            f"{step:,}</title></path>"
            for step in every(sorted(set(self.skipped)), DRAWN)
        ]
        if self.chosen is not None and x0 <= self.chosen <= x1:
            at = x(self.chosen)
            # Written on the side with more room; left of the last iterations, right of the first.
            side = f'x="{at - 4:.1f}" {END}' if at > WIDTH / 2 else f'x="{at + 4:.1f}"'
            parts.append(f'<path class="chosen" d="M{at} {TOP}V{BOTTOM}"/>')
            parts.append(f'<text class="chosen-label" y="{BOTTOM - 6}" {side}>chosen</text>')
        parts += self._lines(points, x, y)
        parts.append(f'<path class="cursor" d="M0 {TOP}V{BOTTOM}" visibility="hidden"/></svg>')
        return "".join(parts)

    def _lines(self, points: list[tuple[int, Real]], x: Scale, y: Scale) -> list[str]:
        line = points
        parts: list[str] = []
        if self.sd is not None:
            band = [triple for triple in self._triples() if math.isfinite(triple[1])]
            edge = [(s, v + (d or 0)) for s, v, d in band]
            edge += [(s, v - (d or 0)) for s, v, d in reversed(band)]
            parts.append(f'<path class="band" d="{path(edge, x, y)}Z"/>')
        elif self.noisy:
            parts.append(f'<path class="raw" d="{path(extremes(points), x, y)}"/>')
            line = self._smooth(points)
        parts.append(f'<path class="line" d="{path(every(line, DRAWN), x, y)}"/>')
        if self.sd is not None and len(points) <= 60:
            parts += [
                f'<circle class="dot" cx="{x(s)}" cy="{y(v)}" r="2.6"><title>iteration {s:,}: '
                f"{percent(v, d)}{self.unit}</title></circle>"
                for s, v, d in band
            ]
        elif len(points) == 1:
            (step, value), *_ = points
            parts.append(f'<circle class="dot" cx="{x(step)}" cy="{y(value)}" r="2.6"/>')
        return parts

    def _draw(self, axes: Any) -> None:
        axes.set_xlabel("iteration")
        if self.noisy:
            points = self.points()
            axes.plot(self.steps, self.values, color="C0", alpha=0.3, linewidth=0.7)
            if points:
                axes.plot(*zip(*self._smooth(points), strict=True), color="C0")
                axes.set_ylim(*self._limits(points))
        elif self.sd is not None:
            spread = [d or 0.0 for d in self._spread()]
            axes.errorbar(self.steps, self.values, yerr=spread, marker="o", markersize=3, capsize=2)
        else:
            axes.plot(self.steps, self.values, color="C0")
        if self.unit:
            axes.set_ylabel(self.unit.strip())
        if self.chosen is not None:
            axes.axvline(self.chosen, color="C1", linestyle="--", linewidth=1)

    def points(self) -> list[tuple[int, Real]]:
        """What the line goes through. A skipped update left no trace in the images, nor here."""
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


def csv_url(rows: Sequence[Row]) -> str:
    """A data: address with `rows`, which have the same keys, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return "data:text/csv;base64," + base64.b64encode(text.getvalue().encode()).decode()


def _or_low(value: Real) -> Real:
    return value if math.isfinite(value) else -math.inf


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(_cell, value)) if isinstance(value, (list, tuple)) else value
