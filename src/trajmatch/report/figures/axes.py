"""What the hand-drawn charts share: scales, round ticks, grids, paths, how numbers are written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from trajmatch.units import Real

WIDTH, HEIGHT = 360, 212  # near the width of a phone, so that text is seen at its own size
LEFT, RIGHT, TOP, BOTTOM = 46, 348, 20, 180
END = 'text-anchor="end"'
DRAWN = 300  # points of a line; more than pixels to show them in


T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """A linear map from values to coordinates, rounded to a tenth and held within the frame."""

    low: Real
    high: Real
    start: Real
    stop: Real

    def __call__(self, value: Real) -> Real:
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return round(self.start + share * (self.stop - self.start), 1)


def grid(x: Scale, y: Scale) -> list[str]:
    """Horizontal lines and the numbers on both axes."""
    middle = 'text-anchor="middle"'
    parts = []
    for value, text in ticks(y.low, y.high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value)}H{RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y(value) + 3.5:.1f}" {END}>{text}</text>'
        )
    for value, text in ticks(x.low, x.high, whole=True):
        parts.append(f'<text class="tick" x="{x(value)}" y="{BOTTOM + 15}" {middle}>{text}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    center = (LEFT + RIGHT) / 2
    parts.append(
        f'<text class="axis-name" x="{center}" y="{BOTTOM + 29}" {middle}>iteration</text>'
    )
    return parts


def ticks(low: Real, high: Real, whole: bool = False) -> list[tuple[Real, str]]:
    """Two to six round values within [low, high], and how to write them."""
    rough = (high - low) / 5
    power = math.floor(math.log10(rough))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= rough * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [k * step for k in range(first, last + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    largest = max(map(abs, values), default=0.0)
    if decimals > 5 or largest >= 1e6:
        exponents = [math.floor(math.log10(v) + 1e-9) for v in (largest or step, step)]
        places = max(0, exponents[0] - exponents[1])
        return [(value, f"{value:.{places}e}" if value else "0") for value in values]
    return [(value, f"{value:,.{decimals}f}") for value in values]


def path(points: Sequence[tuple[Real, Real]], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{x(step)} {y(value)}" for step, value in points)


def every(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, evenly chosen, the last always among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def extremes(points: list[tuple[int, Real]]) -> list[tuple[int, Real]]:
    """Lowest and highest of each stretch: what a line of all points looks like, in fewer."""
    if len(points) <= 2 * DRAWN:
        return points
    kept: list[tuple[int, Real]] = []
    for i in range(DRAWN):
        stretch = points[i * len(points) // DRAWN : (i + 1) * len(points) // DRAWN]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def running_median(values: Sequence[Real], window: int, centers: Sequence[int]) -> list[Real]:
    """The median of the `window` values around each center; fewer at both ends."""
    half = window // 2
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in centers]
