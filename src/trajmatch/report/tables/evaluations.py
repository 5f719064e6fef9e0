"""Later evaluations of a run's set, from the folders inside the run's own."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from trajmatch.errors import FileFormatError
from trajmatch.report.folder import RunFolder
from trajmatch.storage.results import EvaluationResult, Score, load_result


@dataclass(frozen=True)
class LaterScore:
    """A score that `trajmatch evaluate` found after the run."""

    score: Score
    place: str
    """The name of its folder."""


@dataclass(frozen=True)
class Evaluations:
    """Scores that were found after a run, such as those in RUN/evaluated."""

    scores: tuple[LaterScore, ...]
    strange: tuple[str, ...]
    """Folders of evaluations of another set, such as one that the run has improved on since."""
    problems: tuple[str, ...]

    @classmethod
    def inside(cls, run: RunFolder) -> Evaluations:
        """Those directly in the folder of `run`, in the order of their names."""
        scores: list[LaterScore] = []
        strange, problems = [], []
        for path in sorted(run.folder.glob("*/result.json")):
            place = path.parent.name
            try:
                result = load_result(path.parent)
            except FileFormatError as error:
                problems.append(str(error))
                continue
            if not isinstance(result, EvaluationResult):
                continue
            if run.distilled is None or result.fingerprint != run.distilled.fingerprint:
                strange.append(place)
                continue
            scores += [LaterScore(score, place) for score in result.scores]
        return cls(tuple(scores), tuple(strange), tuple(problems))

    def notes(self, run: Path) -> list[str]:
        """What is not shown, and how to get it."""
        own = shlex.quote(str(run))
        return [
            f"What {place} holds was found out about another set than the one here; trajmatch "
            f"evaluate {own} --out {shlex.quote(str(run / place))} tests this one."
            for place in self.strange
        ]
