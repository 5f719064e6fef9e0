"""Accuracies beside one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.sampling import every
from trajmatch.report.figures.theme import (
    ACCENT,
    INK,
    RULE,
    SIZE,
    SOFT,
    WARM,
    Layout,
    clear,
    shown,
    tag,
    ticks,
)
from trajmatch.storage.results import Sample, Score
from trajmatch.units import NBSP, Real, number, percent

_LEFT, _RIGHT, _TOP = 12, 348, 4
_LINE, _TEXT, _DOT = 44, 18, 32
"""The height of a line, and where in it its text and its dot lie."""
_SIZE, _LETTER = 12.5, 0.55
"""Size of names, and the mean width of their letters in units of it."""
_LEGEND = 16
"""The height of the line that says what chance is."""
_ENDS = (0.5, 1, 1.5, 2, 3, 4, 5, 8, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100)
"""Where the axis may end, in percent; it begins at 0."""
_NETWORKS = 50
"""At most so many networks' accuracies are drawn one by one."""
_COLUMNS = (
    "method", "model", "parameters", "lr", "ipc", "n", "mean", "sd", "balanced", "balanced_sd",
    "split", "protocol",
)  # fmt: skip
"""Entries of a score in the figure's frame."""


@dataclass(frozen=True)
class ScorePlot(Figure):
    """Accuracies in percent, one below the other: mean, standard deviation, and each network's."""

    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    about: tuple[Mapping[str, Any], ...] = ()
    """What the frame says of each beside its numbers."""
    main: int | None = None
    """Index of the one that the page is about."""
    chance: float | None = None
    """Accuracy of guessing, in percent, drawn as a line; None where it is not known."""
    chance_words: str = "chance"
    """What that line is called."""
    name: str = "scores"
    title: str = "Test accuracy, %"

    @classmethod
    def of(cls, labels: Sequence[str], scores: Sequence[Score], **known: Any) -> ScorePlot:
        """Of scores, all of whose entries are then in the frame."""
        samples = [Sample(score.mean, score.sd, score.n, score.values) for score in scores]
        about = [{name: getattr(score, name) for name in _COLUMNS} for score in scores]
        return cls(tuple(labels), tuple(samples), tuple(about), **known)

    def frame(self) -> list[Row]:
        about = self.about or tuple({"variant": label} for label in self.labels)
        return [
            {**known, "n": one.n, "mean": one.mean, "sd": one.sd, "values": list(one.values)}
            for known, one in zip(about, self.samples, strict=True)
        ]

    def summary(self) -> str:
        parts = list(map(_words, self.labels, self.samples))
        if self.chance is not None:
            parts.append(f"{self.chance_words} {number(self.chance)}{NBSP}%")
        return "; ".join(parts) + "."

    @property
    def end(self) -> Real:
        """Where the axis ends: above all that is drawn, so that low accuracies can be told apart.

        Examples:
            >>> ScorePlot(("a", "b"), (Sample(0.8, 0.1, 5), Sample(1.2, 0.2, 5)), chance=0.5).end
            1.5
        """
        drawn = [self.chance or 0.0]
        for one in self.samples:
            drawn += [(one.mean or 0.0) + (one.sd or 0.0), *one.values]
        return next((end for end in _ENDS if end >= 1.05 * max(drawn)), 100)

    def layout(self) -> Layout:
        bottom = 8 + _LINE * len(self.samples)
        under = 22 if self.chance is None else 22 + _LEGEND
        return Layout(360, bottom + under, _LEFT, _RIGHT, _TOP, bottom)

    def _draw(self, axes: Any) -> None:
        bottom = self.layout().bottom
        clear(axes)
        axes.set_ylim(bottom, _TOP)  # y is the distance from the top
        axes.set_xlim(0, self.end)
        axes.set_yticks([])
        *marks, (end, words) = ticks(0, self.end)
        marks.append((end, f"{words}{NBSP}%"))
        axes.set_xticks([at for at, _ in marks], [text for _, text in marks])
        first, *_, last = axes.get_xticklabels()
        first.set_ha("left")
        last.set_ha("right")
        axes.grid(axis="x", color=RULE, linewidth=1)
        for index, (label, sample) in enumerate(zip(self.labels, self.samples, strict=True)):
            self._line(axes, 4 + _LINE * index, label, sample, index == self.main)
        if self.chance is not None:
            self._draw_chance(axes, self.chance)

    def _draw_chance(self, axes: Any, chance: float) -> None:
        """Chance in the band of each dot, so that it crosses no name, and a legend below."""
        words = f"{self.chance_words} {number(chance)}{NBSP}%"
        dashed = {"color": WARM, "linewidth": 1.4, "linestyle": (0, (3, 2)), "clip_on": False}
        for index in range(len(self.samples)):
            y = 4 + _LINE * index + _DOT
            (line,) = axes.plot([chance, chance], [y - 9, y + 9], zorder=1, **dashed)
            tag(line, "chance", words)
        under, unit = self.layout().bottom + 21, self.end / (_RIGHT - _LEFT)
        axes.plot([unit, unit], [under, under + 14], **dashed)
        axes.text(8 * unit, under + 11, shown(words), color=SOFT, fontsize=SIZE)

    def _line(self, axes: Any, top: Real, label: str, sample: Sample, main: bool) -> None:
        mean, y, color = sample.mean or 0.0, top + _DOT, ACCENT if main else SOFT
        bar = {"linewidth": 5, "solid_capstyle": "butt", "zorder": 2}
        axes.plot([0, mean], [y, y], color=ACCENT, alpha=0.16, **bar)
        for value in every(sample.values, _NETWORKS):
            axes.plot(
                value, y, "o", color=color, alpha=0.55, markersize=3.6, markeredgewidth=0, zorder=3
            )
        if sample.sd:
            low, high = max(0.0, mean - sample.sd), min(self.end, mean + sample.sd)
            ends = {"xerr": [[mean - low], [high - mean]], "fmt": "none", "color": color}
            axes.errorbar([mean], [y], **ends, elinewidth=1.3, capthick=1.3, capsize=4, zorder=3)
        style = {"color": color, "markersize": 9, "markeredgewidth": 0}
        (dot,) = axes.plot(mean, y, "o", zorder=4, clip_on=False, **style)
        tag(dot, "mean", f"{_words(label, sample)}, n{NBSP}={NBSP}{sample.n}")
        words = percent(mean, sample.sd)
        room = int((_RIGHT - _LEFT) / (_LETTER * _SIZE)) - len(words) - 2
        text = {"color": INK, "fontsize": _SIZE, "fontweight": "bold" if main else "normal"}
        axes.text(0, top + _TEXT, shown(label, room), **text)
        axes.text(self.end, top + _TEXT, words, ha="right", **text)


def _words(label: str, sample: Sample) -> str:
    """`random 68.7 ± 3.1 %`."""
    return f"{label} {percent(sample.mean or 0.0, sample.sd)}{NBSP}%"
