"""A value for each pair of two settings, as shaded cells with the numbers in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.points import Point, accuracy_words, place_words, places
from trajmatch.report.figures.theme import (
    ACCENT,
    FINE,
    INK,
    LETTER,
    SOFT,
    WARM,
    Layout,
    clear,
    shown,
    tag,
)
from trajmatch.units import NBSP, Real

_WIDTH, _RIGHT, _TOP = 360, 348, 22
_LEFT, _MOST = 52, 150
"""Where the cells begin, at least and at most."""
_HIGH, _LOW, _MANY = 46, 24, 8
"""The height of a cell, and its height where there are more lines than so many: mean and spread
are then side by side."""


@dataclass(frozen=True)
class Heatmap(Figure):
    """Accuracies in percent over two settings."""

    name: str
    title: str
    x: str
    y: str
    """The two settings, as `at` of a point calls them."""
    words: tuple[str, str]
    """What the axes are called."""
    points: tuple[Point, ...]
    base: tuple[str, ...] = ()
    """Variants to outline."""

    def frame(self) -> list[Row]:
        return [
            {name: point.at.get(name) for name in (self.x, self.y)}
            | {"mean": point.sample.mean, "sd": point.sample.sd, "n": point.sample.n}
            | {"failed": point.failed, "values": list(point.sample.values)}
            for point in self.points
        ]

    def summary(self) -> str:
        done = [point for point in self.points if point.done]
        high, low = (pick(done, key=lambda point: point.mean) for pick in (max, min))
        texts = [f"{accuracy_words(point.sample)} at {self._place(point)}" for point in (high, low)]
        return f"Highest {texts[0]}; lowest {texts[1]}."

    def layout(self) -> Layout:
        lines = places(self.points, self.y)
        longest = max(len(place_words(value)) for value in lines)
        left = min(_MOST, max(_LEFT, 14 + LETTER * FINE * longest))
        bottom = _TOP + self._high * len(lines)
        return Layout(_WIDTH, bottom + 36, left, _RIGHT, _TOP, bottom)

    def _draw(self, axes: Any) -> None:
        columns, lines = places(self.points, self.x), places(self.points, self.y)
        layout = self.layout()
        wide, high = (layout.right - layout.left) / len(columns), self._high
        clear(axes, FINE)
        axes.set_xlim(layout.left, layout.right)
        axes.set_ylim(layout.bottom, layout.top)  # both as distances from the corner
        room, beside = (int(space / (LETTER * FINE)) for space in (wide, layout.left - 10))
        axes.set_xticks(
            [layout.left + wide * (i + 0.5) for i in range(len(columns))],
            [shown(place_words(value), max(4, room)) for value in columns],
        )
        axes.set_yticks(
            [layout.top + high * (i + 0.5) for i in range(len(lines))],
            [shown(place_words(value), beside) for value in lines],
        )
        axes.set_xlabel(shown(self.words[0]), labelpad=2)
        style = {
            "xycoords": "axes points",
            "fontsize": FINE,
            "color": SOFT,
            "annotation_clip": False,
        }
        above = (2 - layout.left, layout.bottom - layout.top + 10)
        axes.annotate(shown(self.words[1]), above, **style)
        means = [point.mean for point in self.points if point.done]
        low, span = min(means), max(max(means) - min(means), 1e-9)
        for point in self.points:
            corner = (
                layout.left + wide * columns.index(point.at.get(self.x)),
                layout.top + high * lines.index(point.at.get(self.y)),
            )
            shade = 0.05 + 0.45 * (point.mean - low) / span if point.done else 0.0
            self._cell(axes, point, corner, wide, shade)

    def _cell(
        self, axes: Any, point: Point, corner: tuple[Real, Real], wide: Real, shade: Real
    ) -> None:
        from matplotlib.colors import to_rgba
        from matplotlib.patches import FancyBboxPatch

        (x, y), high = corner, self._high
        outlined = point.variant in self.base
        edge = INK if outlined else "none" if point.done else SOFT if point.untested else WARM
        box = FancyBboxPatch(
            (x + 1, y + 1),
            wide - 2,
            high - 2,
            boxstyle="round,pad=0,rounding_size=2",
            facecolor=to_rgba(ACCENT, shade) if point.done else "none",
            edgecolor=edge,
            linewidth=1.4 if outlined else 1,
            linestyle="-" if point.done else (0, (3, 3)),
            zorder=3 if outlined else 2,  # no neighbor covers the outline
        )
        kind = "heat base" if outlined else "heat"
        axes.add_patch(tag(box, kind, f"{self._place(point)}: {point.words}"))
        middle, below = x + wide / 2, y + high / 2
        little = {"fontsize": 9, "color": INK, "zorder": 4}
        if not point.done:
            axes.text(middle, below + 4, point.absent, ha="center", **little)
            return
        value = {"fontsize": 14, "fontweight": "bold", "color": INK, "zorder": 4}
        mean = f"{point.mean:.1f}"
        if point.sample.sd is None:
            axes.text(middle, below + 5, mean, ha="center", **value)
            return
        text = f"±{NBSP}{point.sample.sd:.1f}"
        if high == _HIGH:
            axes.text(middle, below + 1, mean, ha="center", **value)
            axes.text(middle, below + 14, text, ha="center", **little)
        else:
            axes.text(middle + 3, below + 5, mean, ha="right", **value)
            axes.text(middle + 6, below + 5, text, **little)

    @property
    def _high(self) -> int:
        return _HIGH if len(places(self.points, self.y)) <= _MANY else _LOW

    def _place(self, point: Point) -> str:
        """`N 20, M 2`: the axes by the first words of their names."""
        names = zip(self.words, (self.x, self.y), strict=True)
        found = [(words.split(",")[0], place_words(point.at.get(axis))) for words, axis in names]
        return ", ".join(f"{name}{NBSP}{place}" for name, place in found)
