"""A run's folder as the page sees it: result, log, the set, and what could not be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch.errors import DataError, FileFormatError
from trajmatch.methods.coresets import CORESETS
from trajmatch.report.figures.figure import Row
from trajmatch.storage import read_log, read_result
from trajmatch.synthetic import SyntheticSet

BASELINES = {
    "random": "real images, random",
    "herding": "real images, herding",
    "full data": "all training images",
}
"""Methods that a score is compared with, and how they are called."""


def is_chosen(method: object) -> bool:
    """Whether a set of `method` is made of real images."""
    return method in BASELINES or method in CORESETS


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds."""

    folder: Path
    result: Row
    """Empty when the run has not finished."""
    log: list[Row]
    small: SyntheticSet | None
    place: Path | None
    """The folder of `small`; outside of `folder` for an evaluation of a set made elsewhere."""
    problems: list[str]

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        has_result, log = (folder / "result.json").is_file(), folder / "log.jsonl"
        if not has_result and not log.is_file():
            raise DataError(f"not a run folder: {folder}; pass the --out of a distill")
        result = read_result(folder) if has_result else {}
        problems: list[str] = []
        small = place = None
        places = [folder / "best", folder / "last", folder]
        if isinstance(judged := mapping(result.get("settings")).get("set"), str):
            places.append(Path(judged))
        for candidate in places:
            if small is None and (candidate / "distilled.json").exists():
                try:
                    small, place = SyntheticSet.load(candidate), candidate
                except (FileFormatError, DataError) as error:
                    problems.append(str(error))
        return cls(
            folder=folder,
            result=result,
            log=read_log(log) if log.is_file() else [],
            small=small,
            place=place,
            problems=problems,
        )

    @property
    def command(self) -> str:
        return str(self.result.get("command", "distill"))

    @property
    def distills(self) -> bool:
        """Whether the command made a set over iterations, rather than chose or judged one."""
        return self.command not in ("select", "evaluate", "experts")

    def setting(self, table: str, name: str) -> Any:
        """A setting, from the result or else from what the set says about itself."""
        info = self.small.info if self.small is not None else {}
        for settings in (self.result.get("settings"), info.get("settings")):
            values = mapping(settings)
            for found in (mapping(values.get(table)), values):
                if found.get(name) is not None:
                    return found[name]
        return None

    def by_step(self, *names: str) -> dict[int, Row]:
        """Log lines that hold one of `names`, by step; of a step logged twice, the later."""
        found: dict[int, Row] = {}
        for line in self.log:
            if isinstance(line.get("step"), int) and any(name in line for name in names):
                found[line["step"]] = found.get(line["step"], {}) | line
        return dict(sorted(found.items()))

    @property
    def scores(self) -> list[Row]:
        """Scores with a mean, coresets first, full data last, in their order otherwise."""
        rank = {"random": 0, "herding": 1, "full data": 3}
        return sorted(
            scores_of(self.result), key=lambda score: rank.get(str(score.get("method")), 2)
        )

    @property
    def main(self) -> Row | None:
        """The score the page is about: the run's own method, on the network it was made with."""
        own = [s for s in self.scores if s.get("method") not in BASELINES]
        if not own and not self.distills:
            own = self.scores
        same = [s for s in own if s.get("model") == self.result.get("network")]
        return next(iter(same or own), None)

    def score(self, method: str) -> Row | None:
        """The score of `method`, on the main one's network where there are several."""
        found = [score for score in self.scores if score.get("method") == method]
        same = [score for score in found if score.get("model") == (self.main or {}).get("model")]
        return next(iter(same or found), None)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, of the set or else of the data as the result describes it."""
        if self.small is not None:
            return self.small.classes
        names = mapping(self.result.get("data")).get("classes")
        return tuple(map(str, names)) if isinstance(names, list) else ()


def scores_of(result: Row) -> list[Row]:
    """The scores of a result that have a mean."""
    return [s for s in result.get("scores") or [] if is_number(mapping(s).get("mean"))]


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number_or_nan(value: Any) -> float:
    return float(value) if is_number(value) else math.nan


def optional(value: Any) -> float | None:
    return float(value) if is_number(value) else None
