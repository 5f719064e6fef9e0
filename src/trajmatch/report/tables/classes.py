"""Accuracy by class: of the main score as bars, of all scores as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from trajmatch.report.figures.figure import Row, csv_url
from trajmatch.report.folder import RunFolder
from trajmatch.storage.results import Score
from trajmatch.units import NBSP, percent, shortened

MOST = 200
"""Classes that are shown at most: of more, half as many of the lowest and of the highest."""
OPEN = 20
"""Up to so many classes are shown without unfolding."""


@dataclass(frozen=True)
class ClassRow:
    """One class."""

    name: str
    accuracy: float | None
    """In percent, the mean over the networks; None without images to test on."""
    tests: int
    """Images it was tested on."""


@dataclass(frozen=True)
class ClassTable:
    """The main score by class, in the order of the classes."""

    rows: tuple[ClassRow, ...]
    balanced: str
    """The mean over the classes and its spread; empty where it was not recorded."""
    scores: tuple[Score, ...]
    """Those of the same classes with numbers by class, for `frame`."""
    train: tuple[int, ...] = ()
    """Training images of each class; empty where that was not recorded."""

    @classmethod
    def of(cls, run: RunFolder) -> ClassTable | None:
        """None where the main score has no numbers by class."""
        main = run.main
        if main is None or not main.per_class:
            return None
        names = run.classes if len(run.classes) == len(main.tests) else ()
        rows = tuple(
            ClassRow(names[index] if names else f"class {index}", accuracy, main.tests[index])
            for index, accuracy in enumerate(main.per_class)
        )
        alike = [one for one in run.scores if len(one.per_class) == len(rows)]
        data = run.result.data
        train = data.counts.get("train", ()) if data is not None else ()
        balanced = percent(main.balanced, main.balanced_sd) if main.balanced is not None else ""
        return cls(rows, balanced, tuple(alike), train if len(train) == len(rows) else ())

    @property
    def is_open(self) -> bool:
        """Whether there are few enough classes to be shown without unfolding."""
        return len(self.rows) <= OPEN

    @property
    def shown(self) -> tuple[ClassRow, ...]:
        """The rows of the page."""
        if len(self.rows) <= MOST:
            return self.rows
        ranked = self._ranked()
        return (*ranked[: MOST // 2], *ranked[-MOST // 2 :])

    def summary(self) -> str:
        """Mean, lowest and highest, in a few sentences."""
        parts = []
        if self.balanced:
            parts.append(
                f"Balanced accuracy, the mean over the classes, is {self.balanced}{NBSP}%."
            )
        ranked = self._ranked()
        if len(ranked) > 1:
            low, high = ranked[0], ranked[-1]
            parts.append(f"Lowest: {_words(low)}; highest: {_words(high)}.")
        absent = len(self.rows) - len(ranked)
        if absent:
            parts.append(f"{absent} of {len(self.rows)} classes have no images to test on.")
        if len(self.rows) > MOST:
            parts.append(f"The {MOST // 2} lowest and the {MOST // 2} highest are shown.")
        return " ".join(parts)

    def csv_url(self) -> str:
        """A data: address with `frame` as CSV."""
        return csv_url(self.frame())

    def frame(self) -> list[Row]:
        """The numbers behind, a dict a class: images, and accuracy by each score."""
        rows = []
        for index, one in enumerate(self.rows):
            row: Row = {"class": one.name, "tests": one.tests}
            row |= {"train": self.train[index]} if self.train else {}
            for score in self.scores:
                row[f"{score.label}, {score.model}"] = score.per_class[index]
            rows.append(row)
        return rows

    def _ranked(self) -> list[ClassRow]:
        """Classes with test images, the lowest accuracy first."""
        found = [row for row in self.rows if row.accuracy is not None]
        return sorted(found, key=lambda row: row.accuracy or 0.0)


def _words(row: ClassRow) -> str:
    return f"{shortened(row.name, 40)}, {row.accuracy or 0.0:.1f}{NBSP}%"
