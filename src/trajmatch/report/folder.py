"""A run's folder as the page needs it: result, log, the set, and what could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch.errors import DataError, FileFormatError
from trajmatch.report.methods import ALL_IMAGES, COMPARED
from trajmatch.storage.results import RunLog, RunResult, Score, load_log, load_result
from trajmatch.synthetic import SyntheticSet


@dataclass(frozen=True)
class RunFolder:
    """The content of a run's folder."""

    folder: Path
    result: RunResult
    finished: bool
    """Whether there is a result.json; else `result` is empty."""
    log: RunLog
    distilled: SyntheticSet | None
    place: Path | None
    """The folder of `distilled`; outside of `folder` for an evaluation of a set made elsewhere."""
    problems: tuple[str, ...]
    """Why sets could not be read."""

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """Raises DataError for no run folder, FileFormatError for a damaged result or log."""
        finished, log = (folder / "result.json").is_file(), folder / "log.jsonl"
        if not finished and not log.is_file():
            raise DataError(f"not a run folder: {folder}; pass the --out of a distill")
        result = load_result(folder) if finished else RunResult()
        problems: list[str] = []
        distilled = place = None
        places = [folder / "best", folder / "last", folder]
        if isinstance(tested := result.settings.get("set"), str) and "\0" not in tested:
            places.append(Path(tested))
        for candidate in places:
            if distilled is None and (candidate / "distilled.json").exists():
                try:
                    distilled, place = SyntheticSet.load(candidate), candidate
                except (FileFormatError, DataError) as error:
                    problems.append(str(error))
        return cls(
            folder=folder,
            result=result,
            finished=finished,
            log=load_log(log) if log.is_file() else RunLog(),
            distilled=distilled,
            place=place,
            problems=tuple(problems),
        )

    @property
    def command(self) -> str:
        return self.result.command or "distill"

    @property
    def distills(self) -> bool:
        """Whether the command made a set over iterations, rather than chose or tested one."""
        return self.command not in ("select", "evaluate", "experts")

    @property
    def info(self) -> Mapping[str, Any]:
        """What the set records about its making; empty where there is no set."""
        return self.distilled.info if self.distilled is not None else {}

    def setting(self, table: str, name: str) -> Any:
        """A setting, from the result or else from the set."""
        for settings in (self.result.settings, self.info.get("settings")):
            values = _table(settings)
            for found in (_table(values.get(table)), values):
                if found.get(name) is not None:
                    return found[name]
        return None

    @property
    def scores(self) -> list[Score]:
        """Baselines first, those of all training images last, in their order otherwise."""
        rank = {name: place for place, name in enumerate(COMPARED)}
        rank |= {name: len(COMPARED) + 1 + place for place, name in enumerate(ALL_IMAGES)}
        return sorted(self.result.scores, key=lambda score: rank.get(score.method, len(COMPARED)))

    @property
    def main(self) -> Score | None:
        """The score the page is about: the run's own method, on the network it was made with."""
        own = [one for one in self.scores if one.method not in (*COMPARED, *ALL_IMAGES)]
        if not own and not self.distills:
            own = self.scores
        same = [score for score in own if score.model == self.result.network]
        return next(iter(same or own), None)

    def score(self, method: str) -> Score | None:
        """The score of `method`, on the main one's network where there are several."""
        found = [score for score in self.scores if score.method == method]
        main = self.main
        same = [score for score in found if main is not None and score.model == main.model]
        return next(iter(same or found), None)

    @property
    def method(self) -> str:
        """What made or chose the images, or the command; empty where neither is recorded."""
        main = self.main
        method = (main.method if main is not None else "") or self.info.get("method")
        if not method and self.distills:
            method = self.setting("distill", "method")
        return str(method or ("" if self.distills else self.command))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, of the set or else of the data as the result describes it."""
        if self.distilled is not None:
            return self.distilled.classes
        return self.result.data.classes if self.result.data is not None else ()


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
