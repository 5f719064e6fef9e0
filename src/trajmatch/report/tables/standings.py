"""What each method reached with how many images: the table that papers about methods print."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trajmatch.report.figures.figure import Row, csv_url
from trajmatch.report.folder import is_chosen, is_number, mapping
from trajmatch.report.tables.seeds import between, by_place, has_several, mean_sd_n, over_seeds
from trajmatch.units import NBSP, Real, duration, number, percent

REAL, MADE, FULL = "real images", "made images", "all training images"


@dataclasses.dataclass(frozen=True)
class Standing:
    """One method at one number of images per class, over all seeds that were measured.

    Accuracies and scores are {mean, sd, n, values}; a mean of None where there is none.
    """

    method: str
    ipc: Any
    variant: str
    makes: bool
    """Whether its images are made; else they are real ones that were chosen."""
    hard: Row
    """Accuracy under class labels."""
    soft: Row
    """Accuracy under soft labels."""
    lrs: Row
    ars: Row
    """DD-Ranking's two scores, in percent."""
    seconds: float | None
    """That making or choosing the images took: the seeds' mean."""
    bytes: Real | None
    """Peak memory that it took: the largest of the seeds'."""

    @property
    def at(self) -> Row:
        return {"ipc": self.ipc, "method": self.method}

    @property
    def place(self) -> tuple[str, Any]:
        """Where it stands in the table."""
        return self.method, self.ipc


@dataclasses.dataclass(frozen=True)
class Column:
    """What the table says of a method at each number of images per class."""

    name: str
    title: str
    """As papers head it."""
    say: Callable[[Standing], str]


_COLUMNS = (
    Column("hard", "hard labels", lambda one: accuracy(one.hard, "failed")),
    Column("soft", "soft labels", lambda one: accuracy(one.soft)),
    Column("lrs", "LRS", lambda one: accuracy(one.lrs)),
    Column("ars", "ARS", lambda one: accuracy(one.ars)),
    Column("seconds", "making time", lambda one: spent(one.seconds)),
    Column("bytes", "memory, MB", lambda one: megabytes(one.bytes)),
)


@dataclasses.dataclass(frozen=True)
class StandingsTable:
    """Methods by number of images per class, as the page and a README show them."""

    standings: tuple[Standing, ...]
    full: Row | None
    """The score of networks trained on all training images."""
    several: bool
    """Whether means are over seeds, rather than over the networks of one."""
    networks: str
    """How many networks a seed's mean is of."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> StandingsTable:
        """Of the result of a comparison."""
        several = has_several(result)
        counts = [cell["n"] for cell in result["cells"] if cell.get("mean") is not None]
        full = mapping(result.get("full"))
        return cls(
            tuple(_standing(cells, several) for cells in by_place(result["cells"])),
            dict(full) if is_number(full.get("mean")) else None,
            several,
            between(counts),
        )

    @property
    def ipcs(self) -> list[Any]:
        """In order, where they are numbers."""
        found = list(dict.fromkeys(one.ipc for one in self.standings))
        return sorted(found) if all(isinstance(ipc, Real) for ipc in found) else found

    @property
    def columns(self) -> list[Column]:
        """Those in which anybody has a number."""
        return [
            column
            for column in _COLUMNS
            if column.name == "hard" or any(_has(one, column.name) for one in self.standings)
        ]

    @property
    def groups(self) -> list[tuple[str, list[tuple[str, list[Standing | None]]]]]:
        """("real images" or "made images", [(method, its standing at each of `ipcs`)])."""
        found = {one.place: one for one in self.standings}
        methods: dict[str, bool] = {}
        for one in self.standings:
            methods.setdefault(one.method, one.makes)
        groups = []
        for words, makes in ((REAL, False), (MADE, True)):
            names = [name for name, made in methods.items() if made == makes]
            rows = [(name, [found.get((name, ipc)) for ipc in self.ipcs]) for name in names]
            if rows:
                groups.append((words, rows))
        return groups

    @property
    def best(self) -> set[tuple[str, Any]]:
        """(method, ipc) of the highest accuracy under hard labels of each ipc; all that are equal
        to it as it is written."""
        chosen = set()
        for ipc in self.ipcs:
            done = [one for one in self.standings if one.ipc == ipc and _has(one, "hard")]
            most = max((round(one.hard["mean"], 1) for one in done), default=None)
            chosen |= {one.place for one in done if round(one.hard["mean"], 1) == most}
        return chosen

    @property
    def n(self) -> int | None:
        """That most numbers are of."""
        counts = Counter(
            getattr(one, name)["n"]
            for one in self.standings
            for name in ("hard", "soft")
            if _has(one, name)
        )
        return counts.most_common(1)[0][0] if counts else None

    def apart(self, one: Standing, column: Column) -> str:
        """`n = 2`, where that is not the number the table's caption tells; else empty."""
        seeded = ("hard", "soft", "lrs", "ars") if self.several else ("hard", "soft")
        if column.name not in seeded or not _has(one, column.name):
            return ""
        n = getattr(one, column.name)["n"]
        return "" if n == self.n else f"n{NBSP}={NBSP}{n}"

    def counted(self) -> str:
        """What mean, spread and n are of, in a sentence."""
        unless = " unless it is said" if self._uneven() else ""
        if self.several:
            return (
                f"Mean ± standard deviation over n{NBSP}={NBSP}{self.n} seeds{unless}, each the "
                f"mean of {self.networks} fresh networks."
            )
        return (
            f"Mean ± standard deviation over n{NBSP}={NBSP}{self.n} fresh networks{unless} of one "
            "seed."
        )

    def about_full(self) -> str:
        """What the last row is of, in a sentence; empty where there is none."""
        if self.full is None:
            return ""
        how = f" ({self.full['protocol']})" if self.full.get("protocol") else ""
        count = self.full.get("n")
        networks = f"n{NBSP}={NBSP}{count} network{'s' if count != 1 else ''}"
        return f"The last row, {FULL}, is over {networks}{how}."

    def frame(self) -> list[Row]:
        """The numbers behind, a dict a row."""
        rows = []
        for one in self.standings:
            row: Row = {"method": one.method, "ipc": one.ipc, "images": MADE if one.makes else REAL}
            for name in ("hard", "soft", "lrs", "ars"):
                found = getattr(one, name)
                row |= {f"{name}_{key}": found[key] for key in ("mean", "sd", "n")}
            rows.append(row | {"making_seconds": one.seconds, "making_bytes": one.bytes})
        if self.full is not None:
            known = {f"hard_{key}": self.full.get(key) for key in ("mean", "sd", "n")}
            rows.append(dict.fromkeys(rows[0]) | {"method": FULL, "images": FULL} | known)
        return rows

    def csv_url(self) -> str:
        """A data: address with `frame` as CSV."""
        return csv_url(self.frame())

    def _uneven(self) -> bool:
        return any(self.apart(one, column) for one in self.standings for column in self.columns)


def _standing(cells: Sequence[Row], several: bool) -> Standing:
    """Of the cells of all seeds at one place."""
    done = [cell for cell in cells if cell.get("mean") is not None]
    scores = [mapping(cell.get("scores")) for cell in done]
    hard = [score.get("hard") or cell for score, cell in zip(scores, done, strict=True)]
    rankings = [mapping(cell.get("ranking")) for cell in done]
    lrs, ars = ([r[name] for r in rankings if is_number(r.get(name))] for name in ("lrs", "ars"))
    seconds, held = (
        [cell[name] for cell in done if is_number(cell.get(name))]
        for name in ("making_seconds", "making_bytes")
    )
    at = cells[0]["at"]
    told = [cell["makes"] for cell in done if isinstance(cell.get("makes"), bool)]
    return Standing(
        method=str(at.get("method")),
        ipc=at.get("ipc"),
        variant=str(cells[0]["variant"]),
        makes=told[0] if told else not is_chosen(at.get("method")),
        hard=over_seeds(hard, several),
        soft=over_seeds([score["soft"] for score in scores if score.get("soft")], several),
        lrs=mean_sd_n(lrs),
        ars=mean_sd_n(ars),
        seconds=statistics.fmean(seconds) if seconds else None,
        bytes=max(held, default=None),
    )


def _has(one: Standing, name: str) -> bool:
    value = getattr(one, name)
    return (value["mean"] if isinstance(value, dict) else value) is not None


def accuracy(row: Row, absent: str = "–") -> str:
    """`88.7 ± 1.2`."""
    return absent if row["mean"] is None else percent(row["mean"], row["sd"])


def spent(seconds: Real | None) -> str:
    """`12 s`; a time too short to have been told apart from none as that."""
    if seconds is None:
        return "–"
    return duration(seconds).replace(" ", NBSP) if seconds >= 0.001 else f"< 0.001{NBSP}s"


def megabytes(held: Real | None) -> str:
    return "–" if held is None else f"{held / 1e6:,.0f}" if held >= 1e7 else number(held / 1e6, 2)
