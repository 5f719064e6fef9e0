"""Names beside points, where they cover as little as may be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from trajmatch.units import Real

_SWEEPS = 4
_DISTANCES = (0.0, 4.0, 10.0, 18.0, 28.0, 40.0)
_TOWARDS = ((1, 0), (1, -1), (1, 1), (-1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1))


@dataclass(frozen=True)
class Box:
    """A rectangle; y grows downward."""

    left: Real
    top: Real
    right: Real
    bottom: Real
    leader: tuple[tuple[Real, Real], tuple[Real, Real]] | None = None
    """A line from its point, for a name that does not stand right beside it."""

    def shared(self, other: Box) -> Real:
        """The area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)

    def outside(self, frame: Box) -> Real:
        """By how much it leaves the frame."""
        wide = max(0.0, frame.left - self.left, self.right - frame.right)
        high = max(0.0, frame.top - self.top, self.bottom - frame.bottom)
        return wide + high


def place(
    names: Sequence[tuple[Real, Real, Real, Real]],
    taken: Sequence[Box],
    frame: Box,
    gap: Real,
) -> list[Box]:
    """Boxes of names, each (x and y of its point, its width, its height), near their points.

    taken: what is drawn already. gap: from the middle of a point to a name right beside it.

    Each name in turn goes to where it costs least, the others given, a few times over: fast and
    always the same, and good for some dozens; not the best there is.
    """
    choices = [_choices(*name, gap) for name in names]
    chosen: list[Box] = []
    for options in choices:
        chosen.append(min(options, key=lambda box: _cost(box, chosen, taken, frame)))
    for _ in range(_SWEEPS):
        before = list(chosen)
        for i, options in enumerate(choices):
            others = chosen[:i] + chosen[i + 1 :]
            chosen[i] = min(options, key=lambda box: _cost(box, others, taken, frame))
        if chosen == before:
            break
    return chosen


def _choices(x: Real, y: Real, wide: Real, high: Real, gap: Real) -> list[Box]:
    found = []
    for far, (right, down) in itertools.product(_DISTANCES, _TOWARDS):
        reach = gap + far
        share = 1.0 if right == 0 or down == 0 else math.sqrt(0.5)
        a, b = x + right * reach * share, y + down * reach * share
        left = a - wide * (1 - right) / 2
        top = b - high * (1 - down) / 2
        leader = ((x, y), (a, b)) if far > _DISTANCES[1] else None
        found.append(Box(left, top, left + wide, top + high, leader))
    return found


def _cost(box: Box, names: Sequence[Box], taken: Sequence[Box], frame: Box) -> Real:
    cost = 100 * box.outside(frame)
    cost += 3 * sum(box.shared(other) for other in names)
    cost += 2 * sum(box.shared(other) for other in taken)
    if box.leader is not None:
        (x, y), (a, b) = box.leader
        cost += 0.6 * math.hypot(a - x, b - y)
        cost += 8 * sum(_crosses(box.leader, other) for other in names)
    lines = (other.leader for other in names if other.leader is not None)
    return cost + 8 * sum(_crosses(line, box) for line in lines)


def _crosses(line: tuple[tuple[Real, Real], tuple[Real, Real]], box: Box) -> bool:
    """Whether a line goes through a box, looked at in ten places."""
    (x, y), (a, b) = line
    spots = ((x + (a - x) * k / 10, y + (b - y) * k / 10) for k in range(1, 11))
    return any(box.left < p < box.right and box.top < q < box.bottom for p, q in spots)
