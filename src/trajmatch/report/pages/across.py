"""Methods on other networks than the one that their images were made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trajmatch.report.figures.figure import Row, csv_url
from trajmatch.report.figures.scores import network_name
from trajmatch.report.folder import is_number, mapping, optional
from trajmatch.report.tables.seeds import between
from trajmatch.units import NBSP, number, percent


@dataclass(frozen=True)
class Across:
    """Accuracies of methods (down) on networks (across), of the first seed, under own labels."""

    networks: tuple[str, ...]
    """The first is the one that images were made with."""
    rows: tuple[tuple[Any, str, tuple[Row | None, ...]], ...]
    """(ipc, method, a score for each of `networks`)."""

    @classmethod
    def of(cls, cells: Sequence[Row]) -> Across | None:
        """Of a comparison's cells; None when none was tested on another network."""
        tested = [cell for cell in cells if cell.get("networks")]
        found: list[tuple[Any, str, dict[str, Row]]] = []
        for cell in tested:
            scores = [_own(cell), *cell["networks"]]
            named: dict[str, Row] = {}
            for score in scores:
                if score and is_number(score.get("mean")):
                    named.setdefault(network_name(score.get("model")) or "–", score)
            found.append((cell["at"].get("ipc"), str(cell["at"].get("method")), named))
        names = tuple(dict.fromkeys(name for _, _, named in found for name in named))
        if not names:
            return None
        rows = tuple((ipc, method, tuple(map(named.get, names))) for ipc, method, named in found)
        return cls(names, rows)

    def groups(self) -> list[tuple[Any, list[tuple[str, list[Row]]]]]:
        """(ipc, [(method, cells as they are shown)])."""
        found: dict[Any, list[tuple[str, list[Row]]]] = {}
        for ipc, method, scores in self.rows:
            found.setdefault(ipc, []).append(
                (method, list(map(self._cell, range(len(scores)), scores)))
            )
        return list(found.items())

    def heads(self) -> list[tuple[str, str]]:
        """(network, over how many of it) of each column."""
        columns = zip(*(scores for _, _, scores in self.rows), strict=True)
        counts = (between([s["n"] for s in column if s is not None]) for column in columns)
        pairs = zip(self.networks, counts, strict=True)
        return [(network, f"n{NBSP}={NBSP}{count}") for network, count in pairs]

    def caption(self) -> str:
        """What the numbers are, and what marks at learning rates mean."""
        text = (
            "Test accuracy in percent of the first seed’s images, under the labels each set itself "
            "has: mean ± standard deviation over n fresh networks. lr is the learning rate they "
            "began with."
        )
        scores = [score for _, _, row in self.rows for score in row if score is not None]
        origins = sorted({str(s["lr_origin"]) for s in scores if s.get("lr_origin")})
        return " ".join([text, *(f"* Learning rate {origin}." for origin in origins)])

    def frame(self) -> list[Row]:
        """The numbers behind, a dict a row."""
        names = ("n", "mean", "sd", "lr", "lr_origin", "protocol", "values")
        return [
            {"ipc": ipc, "method": method, "model": network}
            | {name: score.get(name) for name in names}
            for ipc, method, scores in self.rows
            for network, score in zip(self.networks, scores, strict=True)
            if score is not None
        ]

    def csv_url(self) -> str:
        """A data: address with `frame` as CSV."""
        return csv_url(self.frame())

    def _cell(self, place: int, score: Row | None) -> Row:
        if score is None:
            return {"accuracy": "–", "lr": "–", "about": ""}
        column = [scores[place] for _, _, scores in self.rows]
        counts = {other["n"] for other in column if other is not None}
        lr, parts = optional(score.get("lr")), []
        if len(counts) > 1:
            parts.append(f"n{NBSP}={NBSP}{score['n']}")
        if score.get("diverged"):
            parts.append(f"{score['diverged']} diverged")
        return {
            "accuracy": percent(score["mean"], score.get("sd")),
            "lr": "–" if lr is None else number(lr) + ("*" if score.get("lr_origin") else ""),
            "about": ", ".join(parts),
        }


def _own(cell: Row) -> Mapping[str, Any]:
    """A cell's score on the network it was made with, under the set's own labels."""
    return mapping(mapping(cell.get("scores")).get(str(cell.get("own")))) or cell
