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
    SOFT,
    Layout,
    clear,
    shown,
    tag,
)
from trajmatch.storage.results import Sample, Score
from trajmatch.units import NBSP, Real, percent

_LEFT, _RIGHT, _TOP = 12, 348, 4
_LINE, _TEXT, _DOT = 44, 18, 32
"""The height of a line, and where in it its text and its dot lie."""
_SIZE, _LETTER = 12.5, 0.55
"""Size of names, and the mean width of their letters in units of it."""
_NETWORKS = 50
"""At most so many networks' accuracies are drawn one by one."""
_COLUMNS = ("method", "model", "parameters", "lr", "ipc", "n", "mean", "sd", "split", "protocol")


@dataclass(frozen=True)
class ScorePlot(Figure):
    """Accuracies in percent, one below the other: mean, standard deviation, and each network's."""

    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    about: tuple[Mapping[str, Any], ...] = ()
    """What the frame says of each beside its numbers."""
    main: int | None = None
    """Index of the one that the page is about."""
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
        return "; ".join(map(_words, self.labels, self.samples)) + "."

    def layout(self) -> Layout:
        bottom = 8 + _LINE * len(self.samples)
        return Layout(360, bottom + 22, _LEFT, _RIGHT, _TOP, bottom)

    def _draw(self, axes: Any) -> None:
        bottom = self.layout().bottom
        clear(axes)
        axes.set_ylim(bottom, _TOP)  # y is the distance from the top
        axes.set_xlim(0, 100)
        axes.set_yticks([])
        axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", f"100{NBSP}%"])
        first, *_, last = axes.get_xticklabels()
        first.set_ha("left")
        last.set_ha("right")
        axes.grid(axis="x", color=RULE, linewidth=1)
        for index, (label, sample) in enumerate(zip(self.labels, self.samples, strict=True)):
            self._line(axes, 4 + _LINE * index, label, sample, index == self.main)

    def _line(self, axes: Any, top: Real, label: str, sample: Sample, main: bool) -> None:
        mean, y, color = sample.mean or 0.0, top + _DOT, ACCENT if main else SOFT
        bar = {"linewidth": 5, "solid_capstyle": "butt", "zorder": 2}
        axes.plot([0, mean], [y, y], color=ACCENT, alpha=0.16, **bar)
        for value in every(sample.values, _NETWORKS):
            axes.plot(
                value, y, "o", color=color, alpha=0.55, markersize=3.6, markeredgewidth=0, zorder=3
            )
        if sample.sd:
            low, high = max(0.0, mean - sample.sd), min(100.0, mean + sample.sd)
            ends = {"xerr": [[mean - low], [high - mean]], "fmt": "none", "color": color}
            axes.errorbar([mean], [y], **ends, elinewidth=1.3, capthick=1.3, capsize=4, zorder=3)
        style = {"color": color, "markersize": 9, "markeredgewidth": 0}
        (dot,) = axes.plot(mean, y, "o", zorder=4, clip_on=False, **style)
        tag(dot, "mean", f"{_words(label, sample)}, n{NBSP}={NBSP}{sample.n}")
        words = percent(mean, sample.sd)
        room = int((_RIGHT - _LEFT) / (_LETTER * _SIZE)) - len(words) - 2
        text = {"color": INK, "fontsize": _SIZE, "fontweight": "bold" if main else "normal"}
        axes.text(0, top + _TEXT, shown(label, room), **text)
        axes.text(100, top + _TEXT, words, ha="right", **text)


def _words(label: str, sample: Sample) -> str:
    """`random 68.7 ± 3.1 %`."""
    return f"{label} {percent(sample.mean or 0.0, sample.sd)}{NBSP}%"
