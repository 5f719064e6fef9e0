"""A value over a number, one line a series: what grows, falls or levels off, with its spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from trajmatch.report.figures.axes import BOTTOM, END, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, ticks
from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.heatmap import MIDDLE, accuracy_words, word
from trajmatch.units import NBSP, Real, number

KINDS = 5
"""Kinds of lines that the page's style sheet tells apart."""
LABELS = 72
"""Width kept free for the names of several lines."""


@dataclass(frozen=True)
class Lines(Figure):
    """Values over a number on a logarithmic axis; sd as bars."""

    name: str
    title: str
    x: str
    """The number, as `at` of a row calls it."""
    words: str
    """What its axis is called."""
    series: Mapping[str, tuple[Row, ...]]
    """Dicts with at, mean, sd, n, values, by the name of the line ("" where there is but one)."""
    level: tuple[Real, str] | None = None
    """A value worth a line of its own, and what it means; the frame then begins at 0."""
    accuracy: bool = True
    """Whether values are accuracies, which are written with one decimal."""

    def frame(self) -> list[Row]:
        return [
            ({"series": name} if name else {})
            | {self.x: row["at"][self.x]}
            | {key: row[key] for key in ("mean", "sd", "n", "values")}
            for name, rows in self.series.items()
            for row in rows
        ]

    def summary(self) -> str:
        texts = []
        for name, rows in self.series.items():
            ends = rows[:1] if len(rows) == 1 else (rows[0], rows[-1])
            text = ", ".join(f"{self._words(row)} at {self._place(row)}" for row in ends)
            texts.append(f"{name}: {text}" if name else text)
        return "; ".join(texts) + "."

    def svg(self) -> str:
        right = RIGHT - LABELS if len(self.series) > 1 else RIGHT
        low, high = self._limits()
        places = self._places()
        begin, end = math.log(places[0]), math.log(places[-1])
        room = 0.06 * (end - begin) or 1.0
        x, y = Scale(begin - room, end + room, LEFT, right), Scale(low, high, BOTTOM, TOP)
        parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(self.title)}. {escape(self.summary())}">'
        ]
        for value, text in ticks(low, high):
            at = f'x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" {END}'
            parts.append(f'<path class="grid" d="M{LEFT} {y(value)}H{right}"/>')
            parts.append(f'<text class="tick" {at}>{text}</text>')
        for place in places:
            at = f'x="{x(math.log(place))}" y="{BOTTOM + 15}" {MIDDLE}'
            parts.append(f'<text class="tick" {at}>{word(place)}</text>')
        at = f'x="{(LEFT + right) / 2}" y="{BOTTOM + 29}" {MIDDLE}'
        parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{right}"/>')
        parts.append(f'<text class="axis-name" {at}>{escape(self.words)}</text>')
        if self.level is not None:
            height, meaning = y(self.level[0]), escape(self.level[1])
            at = f'x="{LEFT + 4}" y="{height - 4:.1f}"'
            parts.append(f'<path class="level" d="M{LEFT} {height}H{right}"/>')
            parts.append(f'<text class="note" {at}>{meaning}</text>')
        heights = _apart([y(rows[-1]["mean"]) for rows in self.series.values()])
        for i, (name, rows) in enumerate(self.series.items()):
            at = f'x="{right + 5}" y="{heights[i] + 4:.1f}"'
            label = f"<text {at}>{escape(name)}</text>" if name else ""
            parts.append(f'<g class="series kind-{i % KINDS}">{self._line(rows, x, y)}{label}</g>')
        return "".join(parts) + "</svg>"

    def _line(self, rows: Sequence[Row], x: Scale, y: Scale) -> str:
        points = [(x(math.log(row["at"][self.x])), y(row["mean"])) for row in rows]
        parts = [f'<path class="line" d="M{"L".join(f"{a} {b}" for a, b in points)}"/>']
        for (a, b), row in zip(points, rows, strict=True):
            if row["sd"]:
                up, down = y(row["mean"] + row["sd"]), y(row["mean"] - row["sd"])
                ends = f"M{a - 3:.1f} {up}h6M{a - 3:.1f} {down}h6"
                parts.append(f'<path class="spread" d="M{a} {up}V{down}{ends}"/>')
            about = escape(f"{self._place(row)}: {self._words(row)}")
            parts.append(f'<circle cx="{a}" cy="{b}" r="3"><title>{about}</title></circle>')
        return "".join(parts)

    def _draw(self, axes: Any) -> None:
        for name, rows in self.series.items():
            axes.errorbar(
                [row["at"][self.x] for row in rows],
                [row["mean"] for row in rows],
                yerr=[row["sd"] or 0.0 for row in rows],
                marker="o",
                markersize=3,
                capsize=2,
                label=name or None,
            )
        axes.set_xscale("log")
        axes.set_xticks(self._places(), [word(place) for place in self._places()])
        axes.minorticks_off()
        axes.set_xlabel(self.words)
        if len(self.series) > 1:
            axes.legend(frameon=False, fontsize=8)

    def _place(self, row: Row) -> str:
        """`N = 20`: the axis by the first words of its name."""
        return f"{self.words.split(',')[0]}{NBSP}={NBSP}{number(row['at'][self.x])}"

    def _places(self) -> list[Real]:
        return sorted({row["at"][self.x] for rows in self.series.values() for row in rows})

    def _limits(self) -> tuple[Real, Real]:
        rows = [row for rows in self.series.values() for row in rows]
        low = min(row["mean"] - (row["sd"] or 0.0) for row in rows)
        high = max(row["mean"] + (row["sd"] or 0.0) for row in rows)
        if self.level is not None:
            low, high = min(0.0, low), max(self.level[0], high)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        return (low - room if low else low), high + room

    def _words(self, row: Row) -> str:
        """`88.7 ± 1.2 %`, or `0.62 ± 0.04`."""
        if self.accuracy:
            return accuracy_words(row)
        spread = "" if row["sd"] is None else f"{NBSP}±{NBSP}{number(row['sd'], 2)}"
        return number(row["mean"]) + spread


def _apart(heights: Sequence[Real], least: Real = 12) -> list[Real]:
    """Heights of labels, moved down where they would overlap."""
    moved = list(heights)
    for above, below in itertools.pairwise(sorted(range(len(moved)), key=lambda i: moved[i])):
        moved[below] = max(moved[below], moved[above] + least)
    return moved
