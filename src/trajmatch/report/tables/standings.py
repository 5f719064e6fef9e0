"""Accuracy by method and number of images: the table that papers about methods print."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from trajmatch.report.figures.figure import Row, csv_url
from trajmatch.report.figures.points import Place
from trajmatch.report.methods import is_chosen
from trajmatch.report.tables.seeds import between, by_place, over_seeds
from trajmatch.storage.results import Cell, Sample, Score, StudyResult
from trajmatch.units import NBSP, Real, duration, number, percent

REAL, DISTILLED = "real images", "made images"


@dataclasses.dataclass(frozen=True)
class Standing:
    """One method at one number of images per class, over all seeds that were measured."""

    method: str
    ipc: Place
    variant: str
    makes: bool
    """Whether its images are made; else they are real ones that were chosen."""
    validated: Sample
    """Accuracy in percent on validation images, under the set's own labels."""
    hard: Sample
    """Accuracy in percent under class labels, on test images as all that follow."""
    soft: Sample
    """Accuracy under soft labels."""
    lrs: Sample
    ars: Sample
    """DD-Ranking's two scores, in percent."""
    seconds: float | None
    """Time of making or choosing the images: the seeds' mean."""
    bytes: int | None
    """Peak memory of that: the largest of the seeds'."""

    @property
    def place(self) -> tuple[str, Place]:
        """Where it stands in the table."""
        return self.method, self.ipc

    @property
    def absent(self) -> str:
        """Why it has no accuracy on test images."""
        return "failed" if self.validated.mean is None else "not tested"

    @property
    def samples(self) -> dict[str, Sample]:
        """By the name of the column."""
        return {
            "hard": self.hard,
            "validated": self.validated,
            "soft": self.soft,
            "lrs": self.lrs,
            "ars": self.ars,
        }

    def has(self, column: str) -> bool:
        """Whether there is a number for `column`."""
        if column in self.samples:
            return self.samples[column].mean is not None
        return (self.seconds if column == "seconds" else self.bytes) is not None


@dataclasses.dataclass(frozen=True)
class Column:
    """What the table says of a method at each number of images per class."""

    name: str
    title: str
    """As papers head it."""
    say: Callable[[Standing], str]


_COLUMNS = (
    Column("hard", "hard labels", lambda one: accuracy(one.hard, one.absent)),
    Column("validated", "validation", lambda one: accuracy(one.validated)),
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
    full: Score | None
    """The score of the experts, which are trained on all training images."""
    several: bool
    """Whether means are over seeds, rather than over the networks of one."""
    networks: str
    """How many networks a seed's mean is of."""

    @classmethod
    def of(cls, result: StudyResult) -> StandingsTable:
        """Of the result of a comparison."""
        several = result.seeds > 1
        counts = [cell.sample.n for cell in result.cells if cell.sample is not None]
        return cls(
            tuple(_standing(cells, several) for cells in by_place(result.cells)),
            result.full,
            several,
            between(counts),
        )

    @property
    def ipcs(self) -> list[Place]:
        """In order, where they are numbers."""
        found = list(dict.fromkeys(one.ipc for one in self.standings))
        numeric = [ipc for ipc in found if isinstance(ipc, int | float)]
        return list[Place](sorted(numeric)) if len(numeric) == len(found) else found

    @property
    def columns(self) -> list[Column]:
        """Those in which some method has a number."""
        return [
            column
            for column in _COLUMNS
            if column.name == "hard" or any(one.has(column.name) for one in self.standings)
        ]

    @property
    def groups(self) -> list[tuple[str, list[tuple[str, list[Standing | None]]]]]:
        """("real images" or "made images", [(method, its standing at each of `ipcs`)])."""
        found = {one.place: one for one in self.standings}
        methods: dict[str, bool] = {}
        for one in self.standings:
            methods.setdefault(one.method, one.makes)
        groups = []
        for words, makes in ((REAL, False), (DISTILLED, True)):
            names = [name for name, is_distilled in methods.items() if is_distilled == makes]
            rows = [(name, [found.get((name, ipc)) for ipc in self.ipcs]) for name in names]
            if rows:
                groups.append((words, rows))
        return groups

    @property
    def sweeps(self) -> bool:
        """Whether some settings were not tested, because others of the same method were chosen."""
        return any(one.hard.mean is None and one.has("validated") for one in self.standings)

    @property
    def ranked(self) -> str:
        """The column that says which is best: accuracy on validation images, or in results of
        earlier versions, which have none, on test images under hard labels."""
        return "validated" if any(one.has("validated") for one in self.standings) else "hard"

    @property
    def best(self) -> set[tuple[str, Place]]:
        """(method, ipc) of the highest accuracy of each ipc in the column `ranked`; all that are
        equal to it as it is written."""
        chosen = set()
        for ipc in self.ipcs:
            means = {
                one.place: one.samples[self.ranked].mean for one in self.standings if one.ipc == ipc
            }
            written = {place: round(mean, 1) for place, mean in means.items() if mean is not None}
            most = max(written.values(), default=None)
            chosen |= {place for place, mean in written.items() if mean == most}
        return chosen

    @property
    def n(self) -> int | None:
        """That most numbers are of."""
        counts = Counter(
            one.samples[name].n
            for one in self.standings
            for name in ("hard", "validated", "soft")
            if one.has(name)
        )
        return counts.most_common(1)[0][0] if counts else None

    def apart(self, one: Standing, column: Column) -> str:
        """`n = 2`, where that is not the number in the table's caption; else empty."""
        seeded = ("hard", "validated", "soft", *(("lrs", "ars") if self.several else ()))
        if column.name not in seeded or not one.has(column.name):
            return ""
        n = one.samples[column.name].n
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
        how = f" ({self.full.protocol})" if self.full.protocol else ""
        count = self.full.n
        networks = f"n{NBSP}={NBSP}{count} network{'s' if count != 1 else ''}"
        return f"The last row, {self.full.label}, is over {networks}{how}."

    def frame(self) -> list[Row]:
        """The numbers behind, a dict a row."""
        rows = []
        for one in self.standings:
            row: Row = {
                "method": one.method,
                "ipc": one.ipc,
                "images": DISTILLED if one.makes else REAL,
            }
            for name, found in one.samples.items():
                row |= {f"{name}_mean": found.mean, f"{name}_sd": found.sd, f"{name}_n": found.n}
            rows.append(row | {"making_seconds": one.seconds, "making_bytes": one.bytes})
        if self.full is not None:
            full = self.full
            known = {"hard_mean": full.mean, "hard_sd": full.sd, "hard_n": full.n}
            rows.append(
                dict.fromkeys(rows[0]) | {"method": full.label, "images": full.label} | known
            )
        return rows

    def csv_url(self) -> str:
        """A data: address with `frame` as CSV."""
        return csv_url(self.frame())

    def _uneven(self) -> bool:
        return any(self.apart(one, column) for one in self.standings for column in self.columns)


def _standing(cells: Sequence[Cell], several: bool) -> Standing:
    """Of the cells of all seeds at one place."""
    done = [(cell, cell.sample) for cell in cells if cell.sample is not None]
    there = [cell for cell in cells if cell.sample is not None or cell.untested]
    seconds = [cell.making_seconds for cell in there if cell.making_seconds is not None]
    memory = [cell.making_bytes for cell in there if cell.making_bytes is not None]
    validated = [cell.validated for cell in there if cell.validated is not None]
    method = str(cells[0].at.get("method"))
    soft = [cell.scores["soft"] for cell, _ in done if "soft" in cell.scores]
    makes = [cell.makes for cell in there if cell.makes is not None]
    return Standing(
        method=method,
        ipc=cells[0].at.get("ipc"),
        variant=cells[0].variant,
        makes=makes[0] if makes else not is_chosen(method),
        validated=over_seeds(validated, several),
        hard=over_seeds([cell.scores.get("hard") or sample for cell, sample in done], several),
        soft=over_seeds(soft, several),
        lrs=Sample.of([cell.lrs for cell, _ in done if cell.lrs is not None]),
        ars=Sample.of([cell.ars for cell, _ in done if cell.ars is not None]),
        seconds=statistics.fmean(seconds) if seconds else None,
        bytes=max(memory, default=None),
    )


def accuracy(sample: Sample, absent: str = "–") -> str:
    """`88.7 ± 1.2`."""
    return absent if sample.mean is None else percent(sample.mean, sample.sd)


def spent(seconds: Real | None) -> str:
    """`12 s`; `< 0.001 s` for a time below what was recorded."""
    if seconds is None:
        return "–"
    return duration(seconds).replace(" ", NBSP) if seconds >= 0.001 else f"< 0.001{NBSP}s"


def megabytes(size: Real | None) -> str:
    """`30`, from bytes."""
    return "–" if size is None else f"{size / 1e6:,.0f}" if size >= 1e7 else number(size / 1e6, 2)
