"""Methods on other networks than the one that their images were made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trajmatch.report.figures.figure import Row, csv_url
from trajmatch.report.figures.points import Place
from trajmatch.report.tables.seeds import between
from trajmatch.storage.results import Cell, Score
from trajmatch.units import NBSP, number, percent


@dataclass(frozen=True)
class AcrossCell:
    """One accuracy as it is shown."""

    accuracy: str
    lr: str
    about: str = ""
    """n where it is not that of the column, and how many networks diverged."""


@dataclass(frozen=True)
class AcrossRow:
    """One method at one number of images per class, with a score for each network."""

    ipc: Place
    method: str
    scores: tuple[Score | None, ...]


@dataclass(frozen=True)
class Across:
    """Accuracies of methods (down) on networks (across), of the first seed, under own labels."""

    networks: tuple[str, ...]
    """The first is the one that images were made with."""
    rows: tuple[AcrossRow, ...]

    @classmethod
    def of(cls, cells: Sequence[Cell], network: str = "–") -> Across | None:
        """Of a comparison's cells; None when none was tested on another network.

        network: the one that images were made with, for scores that do not name theirs.
        """
        found: list[tuple[Cell, dict[str, Score]]] = []
        for cell in cells:
            if cell.networks:
                named: dict[str, Score] = {}
                for score in (cell.own_score, *cell.networks):
                    if score is not None:
                        named.setdefault(score.model or network, score)
                found.append((cell, named))
        names = tuple(dict.fromkeys(name for _, named in found for name in named))
        if not names:
            return None
        rows = [
            AcrossRow(cell.at.get("ipc"), str(cell.at.get("method")), tuple(map(named.get, names)))
            for cell, named in found
        ]
        return cls(names, tuple(rows))

    def groups(self) -> list[tuple[Place, list[tuple[str, list[AcrossCell]]]]]:
        """(ipc, [(method, cells as they are shown)])."""
        found: dict[Place, list[tuple[str, list[AcrossCell]]]] = {}
        for row in self.rows:
            cells = list(map(self._cell, range(len(row.scores)), row.scores))
            found.setdefault(row.ipc, []).append((row.method, cells))
        return list(found.items())

    def heads(self) -> list[tuple[str, str]]:
        """(network, how many of it were trained) of each column."""
        counts = (between(self._counts(place)) for place in range(len(self.networks)))
        pairs = zip(self.networks, counts, strict=True)
        return [(network, f"n{NBSP}={NBSP}{count}") for network, count in pairs]

    def caption(self) -> str:
        """What the numbers are, and what marks at learning rates mean."""
        text = (
            "Test accuracy in percent of the first seed’s images, under the labels each set itself "
            "has: mean ± standard deviation over n fresh networks. lr is the learning rate they "
            "began with."
        )
        scores = [score for row in self.rows for score in row.scores if score is not None]
        origins = sorted({score.lr_origin for score in scores if score.lr_origin})
        return " ".join([text, *(f"* Learning rate {origin}." for origin in origins)])

    def frame(self) -> list[Row]:
        """The numbers behind, a dict a row."""
        names = ("n", "mean", "sd", "lr", "lr_origin", "protocol", "values")
        return [
            {"ipc": row.ipc, "method": row.method, "model": network}
            | {name: getattr(score, name) for name in names}
            for row in self.rows
            for network, score in zip(self.networks, row.scores, strict=True)
            if score is not None
        ]

    def csv_url(self) -> str:
        """A data: address with `frame` as CSV."""
        return csv_url(self.frame())

    def _counts(self, place: int) -> list[int]:
        """n of every score of a column."""
        column = (row.scores[place] for row in self.rows)
        return [score.n for score in column if score is not None]

    def _cell(self, place: int, score: Score | None) -> AcrossCell:
        if score is None:
            return AcrossCell("–", "–")
        parts = []
        if len(set(self._counts(place))) > 1:
            parts.append(f"n{NBSP}={NBSP}{score.n}")
        if score.diverged:
            parts.append(f"{score.diverged} diverged")
        lr = "–" if score.lr is None else number(score.lr) + ("*" if score.lr_origin else "")
        return AcrossCell(percent(score.mean, score.sd), lr, ", ".join(parts))
