"""The result of a study or comparison: what is drawn, and a cell for each variant and seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trajmatch.errors import FileFormatError
from trajmatch.storage.results.fields import Fields, Scalar
from trajmatch.storage.results.run import RunResult
from trajmatch.storage.results.score import EXPERTS, Score
from trajmatch.units import Real


@dataclass(frozen=True)
class Sample:
    """Numbers by their mean and standard deviation.

    Examples:
        >>> Sample.of([1.0, 3.0])
        Sample(mean=2.0, sd=1.4142135623730951, n=2, values=(1.0, 3.0))
        >>> Sample.of([])
        Sample(mean=None, sd=None, n=0, values=())
    """

    mean: float | None
    """None for no number."""
    sd: float | None
    """With ddof=1; None for fewer than two numbers."""
    n: int
    values: tuple[float, ...] = ()
    """May be empty where only mean, sd and n were published."""

    @classmethod
    def of(cls, values: Sequence[Real]) -> Sample:
        return cls(
            mean=statistics.fmean(values) if values else None,
            sd=statistics.stdev(values) if len(values) > 1 else None,
            n=len(values),
            values=tuple(map(float, values)),
        )

    @classmethod
    def read(cls, values: Fields) -> Sample | None:
        """The mean, sd, n and values of an object; None where it has no mean."""
        mean = values.number("mean")
        if mean is None:
            return None
        return cls(
            mean, values.number("sd", 0), values.require_count("n", 1), values.numbers("values")
        )


@dataclass(frozen=True)
class StudyPlan:
    """What a study varies and how it is drawn."""

    name: str
    purpose: str
    rule: str
    """What all variants have in common."""
    figure: str
    """bars, grid or lines."""
    page: str
    """`comparison` for methods side by side; empty for the page of any study."""
    axes: Mapping[str, str]
    """Setting -> what its axis is called."""
    measured: str
    counted: str
    """What n counts within a seed."""
    base: tuple[str, ...]
    """Variants whose settings are those of the base."""

    @property
    def is_accuracy(self) -> bool:
        """Whether the values are accuracies in percent."""
        return self.measured.endswith("%")

    @classmethod
    def read(cls, values: Fields) -> StudyPlan:
        axes = values.scalars("axes")
        return cls(
            name=values.text("name", "study"),
            purpose=values.text("question"),
            rule=values.text("rule"),
            figure=values.text("figure"),
            page=values.text("page"),
            axes={name: str(words) for name, words in axes.items()},
            measured=values.text("measured"),
            counted=values.text("counted"),
            base=values.texts("base"),
        )


@dataclass(frozen=True)
class Cell:
    """One variant for one seed: what was measured, or the error that prevented it."""

    variant: str
    at: Mapping[str, Scalar]
    """Its place on the axes of the study."""
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that differ from the base, by names such as `distill.ipc`."""
    error: str = ""
    sample: Sample | None = None
    """The measured value over fresh networks (or over experts and start epochs); None: failed."""
    validated: Score | None = None
    """In a comparison: on validation images, with the set's own labels; None in results of earlier
    versions."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    """In a comparison: accuracy with `hard` and `soft` labels, and without augmentation."""
    own: str = "hard"
    """Which of `scores` uses the labels that the set itself has."""
    networks: tuple[Score, ...] = ()
    """Scores on other networks."""
    lrs: float | None = None
    """DD-Ranking's label-robust score, in percent."""
    ars: float | None = None
    """Its augmentation-robust score."""
    makes: bool | None = None
    """Whether the images were made rather than chosen; None where that was not recorded."""
    making_seconds: float | None = None
    making_bytes: int | None = None
    """Peak memory of making the set, beyond what the process used before."""

    @classmethod
    def from_json(cls, values: Any, file: str = "the cell", place: str = "") -> Cell:
        """A cell of result.json, or a row of cell.json.

        Raises FileFormatError, beginning with `file` and `place`, for a wrong type or range.
        """
        return cls.read(Fields.of(values, file, place))

    @classmethod
    def read(cls, values: Fields) -> Cell:
        """As `from_json`."""
        scores, ranking = _scores(values), values.inner("ranking")
        error, sample = values.text("error"), Sample.read(values)
        hard, validated = scores.get("hard"), values.inner("validated")
        if sample is None and hard is not None and not error:  # abridged results repeat nothing
            sample = Sample(hard.mean, hard.sd, hard.n, hard.values)
        return cls(
            variant=values.text("variant", "unnamed"),
            at=values.scalars("at"),
            seed=values.count("seed") or 0,
            settings=values.tree("settings"),
            error=error,
            sample=sample,
            validated=None if validated is None else Score.read(validated),
            scores=scores,
            own=values.text("own", "hard"),
            networks=tuple(map(Score.read, values.inners("networks"))),
            lrs=None if ranking is None else ranking.number("lrs", 0, 100),
            ars=None if ranking is None else ranking.number("ars", 0, 100),
            makes=values.flag("makes"),
            making_seconds=values.number("making_seconds", 0),
            making_bytes=values.count("making_bytes"),
        )

    @property
    def untested(self) -> bool:
        """Whether validation images chose other settings of its method, and it was not tested."""
        return self.sample is None and self.validated is not None

    @property
    def own_score(self) -> Score | None:
        """The score on the network that the set was made with, under the set's own labels."""
        return self.scores.get(self.own)


@dataclass(frozen=True)
class StudyResult(RunResult):
    """The result of `trajmatch study` or `trajmatch compare`."""

    study: StudyPlan = StudyPlan("", "", "", "", "", {}, "", "", ())
    cells: tuple[Cell, ...] = ()
    full: Score | None = None
    """The experts', which were trained on all training images."""

    @property
    def seeds(self) -> int:
        """How many seeds the study was to measure."""
        count = self.settings.get("seeds", 1)
        return count if isinstance(count, int) else 1

    @classmethod
    def read(cls, values: Fields) -> StudyResult:
        plan, full = values.inner("study"), values.inner("full")
        cells = tuple(map(Cell.read, values.inners("cells")))
        if plan is None or not cells:
            raise FileFormatError(f"{values.file}: the study has no cells; run the command again")
        return cls(
            **cls.shared(values),
            study=StudyPlan.read(plan),
            cells=cells,
            # Abridged results do not name the method.
            full=None if full is None else replace(Score.read(full), method=EXPERTS),
        )


def _scores(values: Fields) -> dict[str, Score]:
    inner = values.inner("scores")
    if inner is None:
        return {}
    found = {name: inner.inner(name) for name in inner.values}
    return {name: Score.read(score) for name, score in found.items() if score is not None}
