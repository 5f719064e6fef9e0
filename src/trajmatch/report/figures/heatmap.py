"""A value for each pair of two settings, as shaded cells with the numbers in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any

from trajmatch.report.figures.axes import END, RIGHT, WIDTH, Scale
from trajmatch.report.figures.figure import Figure, Row
from trajmatch.units import NBSP, Real, number, percent

LEFT, TOP = 52, 22
"""Where the cells begin at least."""
HIGH, LOW, MANY = 46, 24, 8
"""How high a cell is, and how high where there are more lines than so many: mean and spread are
then side by side."""
LETTER = 6.5
"""Width of a letter beside them."""
MIDDLE = 'text-anchor="middle"'


@dataclass(frozen=True)
class Heatmap(Figure):
    """Accuracies in percent over two settings."""

    name: str
    title: str
    x: str
    y: str
    """The two settings, as `at` of a row calls them."""
    words: tuple[str, str]
    """What the axes are called."""
    rows: tuple[Row, ...]
    """Dicts with variant, at, mean (None: failed), sd, n, failed, values."""
    base: tuple[str, ...] = ()
    """Variants to outline."""

    def frame(self) -> list[Row]:
        return [
            {name: row["at"].get(name) for name in (self.x, self.y)}
            | {name: row[name] for name in ("mean", "sd", "n", "failed", "values")}
            for row in self.rows
        ]

    def summary(self) -> str:
        done = self._done()
        low, high = (pick(done, key=lambda row: float(row["mean"])) for pick in (min, max))
        texts = [f"{accuracy_words(row)} at {self._place(row)}" for row in (high, low)]
        return f"Highest {texts[0]}; lowest {texts[1]}."

    def svg(self) -> str:
        columns, lines = self._values(self.x), self._values(self.y)
        left = max(LEFT, 14 + LETTER * max(len(word(value)) for value in lines))
        high = self._high
        wide, bottom = (RIGHT - left) / len(columns), TOP + high * len(lines)
        means = [row["mean"] for row in self._done()]
        shade = Scale(min(means), max(max(means), min(means) + 1e-9), 5, 50)
        parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 36}" role="img" '
            f'aria-label="{escape(self.title)}. {escape(self.summary())}">',
            f'<text class="axis-name" x="2" y="12">{escape(self.words[1])}</text>',
        ]
        for i, value in enumerate(lines):
            at = f'x="{left - 7:g}" y="{TOP + high * (i + 0.5) + 4}" {END}'
            parts.append(f'<text class="tick" {at}>{word(value)}</text>')
        for i, value in enumerate(columns):
            at = f'x="{left + wide * (i + 0.5):.1f}" y="{bottom + 15}" {MIDDLE}'
            parts.append(f'<text class="tick" {at}>{word(value)}</text>')
        parts.append(
            f'<text class="axis-name" x="{(left + RIGHT) / 2:g}" y="{bottom + 31}" {MIDDLE}>'
            f"{escape(self.words[0])}</text>"
        )
        # The outlined last, so that no neighbor covers the outline.
        for row in sorted(self.rows, key=lambda row: row["variant"] in self.base):
            x = left + wide * columns.index(row["at"][self.x])
            y = TOP + high * lines.index(row["at"][self.y])
            parts.append(self._cell(row, x, y, wide, shade))
        return "".join(parts) + "</svg>"

    def _cell(self, row: Row, x: Real, y: Real, wide: Real, shade: Scale) -> str:
        high = self._high
        kind = "heat base" if row["variant"] in self.base else "heat"
        about = f"<title>{escape(self._place(row))}: {accuracy_words(row)}</title>"
        box = f'x="{x + 1:.1f}" y="{y + 1}" width="{wide - 2:.1f}" height="{high - 2}" rx="2"'
        middle = f'x="{x + wide / 2:.1f}" {MIDDLE}'
        if row["mean"] is None:
            return (
                f'<g class="{kind} none">{about}<rect {box}/>'
                f'<text {middle} y="{y + high / 2 + 4}">failed</text></g>'
            )
        mean, spread = f"{row['mean']:.1f}", ""
        at = f'{middle} y="{y + high / 2 + 5}"'
        if row["sd"] is not None:
            text = f"±{NBSP}{row['sd']:.1f}"
            if high == HIGH:
                at = f'{middle} y="{y + high / 2 + 1}"'
                spread = f'<text {middle} y="{y + high / 2 + 14}">{text}</text>'
            else:
                at = f'x="{x + wide / 2 + 3:.1f}" {END} y="{y + high / 2 + 5}"'
                spread = f'<text x="{x + wide / 2 + 6:.1f}" y="{y + high / 2 + 5}">{text}</text>'
        return (
            f'<g class="{kind}">{about}<rect {box} fill-opacity="{shade(row["mean"]):.0f}%"/>'
            f'<text class="value" {at}>{mean}</text>{spread}</g>'
        )

    def _draw(self, axes: Any) -> None:
        columns, lines = self._values(self.x), self._values(self.y)
        table = [[math.nan] * len(columns) for _ in lines]
        for row in self._done():
            i, j = lines.index(row["at"][self.y]), columns.index(row["at"][self.x])
            table[i][j] = row["mean"]
            axes.text(j, i, accuracy_words(row), ha="center", va="center", fontsize=8)
        axes.imshow(table, aspect="auto", cmap="Blues", alpha=0.6)
        axes.set_xticks(range(len(columns)), [word(value) for value in columns])
        axes.set_yticks(range(len(lines)), [word(value) for value in lines])
        axes.set_xlabel(self.words[0])
        axes.set_ylabel(self.words[1])

    @property
    def _high(self) -> int:
        return HIGH if len(self._values(self.y)) <= MANY else LOW

    def _done(self) -> list[Row]:
        return [row for row in self.rows if row["mean"] is not None]

    def _values(self, axis: str) -> list[Any]:
        """Along an axis: numbers in order, words as they came."""
        found = list(dict.fromkeys(row["at"][axis] for row in self.rows))
        return sorted(found) if all(isinstance(value, Real) for value in found) else found

    def _place(self, row: Row) -> str:
        """`N 20, M 2`: the axes by the first words of their names."""
        names = zip(self.words, (self.x, self.y), strict=True)
        places = [(words.split(",")[0], word(row["at"][axis])) for words, axis in names]
        return ", ".join(f"{name}{NBSP}{place}" for name, place in places)


def accuracy_words(row: Row) -> str:
    """`88.7 ± 1.2 %`."""
    return "failed" if row["mean"] is None else f"{percent(row['mean'], row['sd'])}{NBSP}%"


def word(value: Any) -> str:
    """A place on an axis, as it is written in markup."""
    return number(value) if isinstance(value, Real) else escape(str(value))
