"""Validation accuracy of one trial after another, and of the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.theme import (
    ACCENT,
    SOFT,
    WARM,
    Layout,
    baseline,
    clear,
    spread,
    tag,
    ticks,
    y_grid,
)
from trajmatch.storage.results import Tried
from trajmatch.units import NBSP, Real, percent


@dataclass(frozen=True)
class History(Figure):
    """Trials over their numbers: completed ones as dots, those stopped early as crosses, and the
    highest so far as a line."""

    trials: tuple[Tried, ...]
    """In the order of their numbers; those without an accuracy are not drawn."""
    name: str = "history"
    title: str = "Validation accuracy by trial, %"

    @property
    def drawn(self) -> list[tuple[Tried, float]]:
        """Trials with their accuracy."""
        return [(tried, tried.mean) for tried in self.trials if tried.mean is not None]

    def best(self) -> list[tuple[Tried, float]]:
        """After each completed trial the highest accuracy until then."""
        found: list[tuple[Tried, float]] = []
        for tried, mean in self.drawn:
            if tried.state == "complete":
                found.append((tried, max(mean, found[-1][1] if found else mean)))
        return found

    def frame(self) -> list[Row]:
        best = {tried.number: mean for tried, mean in self.best()}
        return [
            {"trial": tried.number, "state": tried.state, "mean": tried.mean, "sd": tried.sd}
            | {"n": tried.n, "best": best.get(tried.number)}
            for tried in self.trials
        ]

    def summary(self) -> str:
        best = self.best()
        stopped = sum(tried.state == "pruned" for tried in self.trials)
        first, (last, mean) = best[0], best[-1]
        text = f"The highest so far rises from {percent(first[1])} to {percent(mean)}{NBSP}% over "
        were = "was" if stopped == 1 else "were"
        return f"{text}{last.number + 1} trials; {stopped} {were} stopped early."

    def layout(self) -> Layout:
        return Layout(width=520, height=240, left=40, right=508, top=14, bottom=206)

    def _draw(self, axes: Any) -> None:
        clear(axes)
        baseline(axes, "trial")
        drawn = self.drawn
        last = max((tried.number for tried, _ in drawn), default=1)
        room = max(0.5, 0.03 * last)
        axes.set_xlim(-room, last + room)
        marks = ticks(0, max(last, 2), integers=True)
        axes.set_xticks([value for value, _ in marks], [text for _, text in marks])
        y_grid(axes, *_limits([(mean, tried.sd or 0.0) for tried, mean in drawn]))
        best = self.best()
        axes.step(
            [*(tried.number for tried, _ in best), last],
            [mean for _, mean in (*best, best[-1])],
            where="post",
            color=ACCENT,
            linewidth=1.8,
            zorder=1.5,
        )
        for tried, mean in drawn:
            self._dot(axes, tried, mean)

    def _dot(self, axes: Any, tried: Tried, mean: float) -> None:
        words = f"trial {tried.number}: {percent(mean, tried.sd)}{NBSP}% (n{NBSP}={NBSP}{tried.n})"
        if tried.state == "complete":
            spread(axes, tried.number, mean, tried.sd, SOFT)
            (dot,) = axes.plot(tried.number, mean, "o", color=ACCENT, markersize=6, zorder=3)
        else:
            words += f", stopped at iteration {tried.iteration}"
            style = {"markersize": 6, "markeredgewidth": 1.6, "zorder": 3}
            (dot,) = axes.plot(tried.number, mean, "x", color=WARM, **style)
        tag(dot, "dot", words)


def _limits(found: Sequence[tuple[Real, Real]]) -> tuple[Real, Real]:
    """Means with their standard deviations, and a little room, within 0 and 100."""
    low = min(mean - sd for mean, sd in found)
    high = max(mean + sd for mean, sd in found)
    room = 0.06 * (high - low) or 1.0
    return max(0.0, low - room), min(100.0, high + room)
