"""What `trajmatch evaluate` found out about a run's set, from the folders in the run's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajmatch.errors import FileFormatError
from trajmatch.report.figures.figure import Row
from trajmatch.report.folder import RunFolder, mapping, scores_of
from trajmatch.storage import read_result


@dataclass(frozen=True)
class Evaluations:
    """Scores that were found after a run, such as those in RUN/evaluated."""

    scores: tuple[Row, ...]
    """As a result holds them; `place` names the folder."""
    strange: tuple[str, ...]
    """Folders of evaluations of another set, such as one that the run has improved on since."""
    problems: tuple[str, ...]

    @classmethod
    def inside(cls, run: RunFolder) -> Evaluations:
        """Those directly in the folder of `run`, in the order of their names."""
        scores: list[Row] = []
        strange, problems = [], []
        for path in sorted(run.folder.glob("*/result.json")):
            try:
                result = read_result(path.parent)
            except FileFormatError as error:
                problems.append(str(error))
                continue
            if result.get("command") != "evaluate":
                continue
            judged = mapping(result.get("set")).get("fingerprint")
            if run.small is None or judged != run.small.fingerprint:
                strange.append(path.parent.name)
                continue
            scores += [{**score, "place": path.parent.name} for score in scores_of(result)]
        return cls(tuple(scores), tuple(strange), tuple(problems))

    def notes(self, run: Path) -> list[str]:
        """What is not shown, and how to get it."""
        return [
            f"What {place} holds was found out about another set than the one here; trajmatch "
            f"evaluate {run} --out {run / place} tests this one."
            for place in self.strange
        ]
