"""An accuracy over what it cost, a named point each: what a slower or larger method gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from trajmatch.report.figures.axes import END, Scale, ticks
from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.heatmap import MIDDLE, accuracy_words, word
from trajmatch.report.figures.labels import Box, place
from trajmatch.report.figures.lines import KINDS
from trajmatch.units import NBSP, Real, number

WIDTH, HEIGHT = 640, 360
"""Wider than the other figures: every point has its name beside it."""
LEFT, RIGHT, TOP, BOTTOM = 42, 630, 26, 318
MARK = 3.6
"""Half the width of a point's mark."""
LETTER, LINE = 5.0, 10.0
"""About how wide and how high a letter of a name is."""


@dataclass(frozen=True)
class Scatter(Figure):
    """Accuracies in percent over a cost on a logarithmic axis; sd as bars."""

    name: str
    title: str
    x: str
    """The cost, as a row calls it."""
    words: str
    """What its axis is called, such as "making time, s"."""
    label: str
    """What names a point, as `at` of a row calls it."""
    series: Mapping[str, tuple[Row, ...]]
    """Dicts with at, the cost, mean, sd, n, by the name of the series."""
    least: Real = 1e-3
    """Lower costs are drawn here: a logarithmic axis has no 0, and none is worth a decade."""

    def frame(self) -> list[Row]:
        return [
            {**row["at"], self.x: row[self.x]} | {key: row[key] for key in ("mean", "sd", "n")}
            for rows in self.series.values()
            for row in rows
        ]

    def summary(self) -> str:
        texts = []
        for name, rows in self.series.items():
            best = max(rows, key=lambda row: float(row["mean"]))
            first = min(rows, key=lambda row: float(row[self.x]))
            text = f"highest {self._words(best)}"
            if first is not best:
                text += f", cheapest {self._words(first)}"
            texts.append(f"{name}: {text}" if name else text)
        text = "; ".join(texts) + "."
        return text[:1].upper() + text[1:]

    def svg(self) -> str:
        x, y = self._scales()
        parts = [
            f'<svg class="chart scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}. {escape(self.summary())}">'
        ]
        for value, text in ticks(y.low, y.high):
            at = f'x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" {END}'
            parts.append(f'<path class="grid" d="M{LEFT} {y(value)}H{RIGHT}"/>')
            parts.append(f'<text class="tick" {at}>{text}</text>')
        for value, text in self._ticks(x):
            at = f'x="{x(math.log(value))}" y="{BOTTOM + 15}" {MIDDLE}'
            parts.append(f'<path class="axis" d="M{x(math.log(value))} {BOTTOM}v4"/>')
            parts.append(f'<text class="tick" {at}>{text}</text>')
        at = f'x="{(LEFT + RIGHT) / 2:g}" y="{BOTTOM + 31}" {MIDDLE}'
        parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
        parts.append(f'<text class="axis-name" {at}>{escape(self.words)}</text>')
        points = [(x(math.log(self._cost(row))), y(row["mean"]), row) for row in self._rows()]
        names = place(
            [(a, b, self._wide(row), LINE) for a, b, row in points],
            [box for a, b, row in points for box in _taken(a, b, row, y)],
            Box(LEFT + 2, TOP - 10, RIGHT + 8, BOTTOM - 2),
            gap=MARK + 2.5,
        )
        drawn, begun = 0, float(LEFT)
        for i, (name, rows) in enumerate(self.series.items()):
            parts.append(f'<g class="series kind-{i % KINDS}">')
            if name:
                parts.append(_mark(i, begun + MARK, 8) + _text(escape(name), begun + 12, 11))
                begun += 30 + LETTER * 1.1 * len(name)
            for a, b, row in points[drawn : drawn + len(rows)]:
                parts.append(self._point(i, a, b, row, y, names[drawn]))
                drawn += 1
            parts.append("</g>")
        return "".join(parts) + "</svg>"

    def _point(self, kind: int, a: Real, b: Real, row: Row, y: Scale, name: Box) -> str:
        parts = []
        if row["sd"]:
            up, down = y(row["mean"] + row["sd"]), y(row["mean"] - row["sd"])
            ends = f"M{a - 3:.1f} {up}h6M{a - 3:.1f} {down}h6"
            parts.append(f'<path class="spread" d="M{a} {up}V{down}{ends}"/>')
        if name.leader is not None:
            (c, d), (e, f) = name.leader
            parts.append(f'<path class="leader" d="M{c:.1f} {d:.1f}L{e:.1f} {f:.1f}"/>')
        about = f"<title>{escape(self._words(row))}</title>"
        parts.append(_mark(kind, a, b, about))
        parts.append(_text(word(row["at"][self.label]), name.left, name.bottom - 2.2))
        return "".join(parts)

    def _draw(self, axes: Any) -> None:
        for i, (name, rows) in enumerate(self.series.items()):
            costs = [self._cost(row) for row in rows]
            axes.errorbar(
                costs,
                [row["mean"] for row in rows],
                yerr=[row["sd"] or 0.0 for row in rows],
                fmt="osD^v"[i % KINDS],
                markersize=3,
                capsize=2,
                label=name or None,
            )
            for cost, row in zip(costs, rows, strict=True):
                text = str(row["at"][self.label])
                axes.annotate(
                    text, (cost, row["mean"]), (3, 2), textcoords="offset points", fontsize=5
                )
        axes.set_xscale("log")
        axes.set_xlabel(self.words)
        if len(self.series) > 1:
            axes.legend(frameon=False, fontsize=8)

    def _rows(self) -> list[Row]:
        return [row for rows in self.series.values() for row in rows]

    def _cost(self, row: Row) -> Real:
        return max(self.least, float(row[self.x]))

    def _words(self, row: Row) -> str:
        """`dm: 88.7 ± 1.2 % at 12 s`, in the unit that the axis is called after its comma."""
        unit = self.words.partition(", ")[2]
        less = "less than " if row[self.x] < self.least else ""
        cost = f"{less}{number(self._cost(row))}{NBSP}{unit}".rstrip(NBSP)
        return f"{row['at'][self.label]}: {accuracy_words(row)} at {cost}"

    def _wide(self, row: Row) -> Real:
        return LETTER * len(str(row["at"][self.label])) + 2

    def _scales(self) -> tuple[Scale, Scale]:
        rows = self._rows()
        costs = [math.log(self._cost(row)) for row in rows]
        low = min(row["mean"] - (row["sd"] or 0.0) for row in rows)
        high = max(row["mean"] + (row["sd"] or 0.0) for row in rows)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        side = 0.04 * (max(costs) - min(costs)) or 1.0
        x = Scale(min(costs) - side, max(costs) + side, LEFT, RIGHT)
        return x, Scale(low - room, high + room, BOTTOM, TOP)

    def _ticks(self, x: Scale) -> list[tuple[Real, str]]:
        """Powers of ten, and twice and five times those on a short axis."""
        low, high = math.exp(x.low), math.exp(x.high)
        steps = (1, 2, 5) if high / low < 300 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        below = any(row[self.x] < self.least for row in self._rows())
        return [
            (value, ("≤" + NBSP) * (below and value <= self.least * 1.001) + number(value))
            for value in values
            if low <= value <= high
        ]


def _taken(a: Real, b: Real, row: Row, y: Scale) -> list[Box]:
    """What names should not cover: a point's mark and its bar."""
    boxes = [Box(a - MARK, b - MARK, a + MARK, b + MARK)]
    if row["sd"]:
        up, down = y(row["mean"] + row["sd"]), y(row["mean"] - row["sd"])
        boxes.append(Box(a - 1, up, a + 1, down))
    return boxes


def _mark(kind: int, a: Real, b: Real, about: str = "") -> str:
    """A point: round, square, on its corner, a triangle up or down."""
    r = MARK
    paths: Sequence[str] = (
        "",
        f"M{a - r:.1f} {b - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
        f"M{a:.1f} {b - 1.3 * r:.1f}l{1.3 * r:.1f} {1.3 * r:.1f}l{-1.3 * r:.1f} {1.3 * r:.1f}"
        f"l{-1.3 * r:.1f} {-1.3 * r:.1f}Z",
        f"M{a:.1f} {b - 1.2 * r:.1f}l{1.2 * r:.1f} {2.1 * r:.1f}h{-2.4 * r:.1f}Z",
        f"M{a:.1f} {b + 1.2 * r:.1f}l{1.2 * r:.1f} {-2.1 * r:.1f}h{-2.4 * r:.1f}Z",
    )
    shape = paths[kind % KINDS]
    if not shape:
        return f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="{r}">{about}</circle>'
    return f'<path class="mark" d="{shape}">{about}</path>'


def _text(markup: str, x: Real, y: Real) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{markup}</text>'
