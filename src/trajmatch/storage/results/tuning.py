"""The result of a tuning: its trials, the best of them, and what mattered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trajmatch.errors import FileFormatError
from trajmatch.storage.results.fields import Fields, Scalar
from trajmatch.storage.results.run import RunResult
from trajmatch.units import number

STATES = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Tried:
    """One distillation; accuracies in percent of the validation images."""

    number: int
    state: str
    """complete; pruned, where it was stopped below the median; failed, with `error`."""
    settings: Mapping[str, Scalar]
    """Of those that are searched; None: chosen by the run."""
    mean: float | None
    """Of its best set, over n fresh networks; of a pruned one the highest until then. None: no
    validation."""
    sd: float | None
    n: int
    iteration: int
    """Of the best set; of a pruned trial the one it was stopped at."""
    seconds: float | None
    error: str = ""

    @classmethod
    def read(cls, values: Fields) -> Tried:
        state = values.text("state")
        if state not in STATES:
            values.refuse("state", f"one of {', '.join(STATES)}")
        return cls(
            number=values.require_count("number"),
            state=state,
            settings=values.scalars("settings"),
            mean=values.number("mean", 0, 100),
            sd=values.number("sd", 0),
            n=values.require_count("n", 1),
            iteration=values.count("iteration") or 0,
            seconds=values.number("seconds", 0),
            error=values.text("error"),
        )


@dataclass(frozen=True)
class SearchedRange:
    """What was searched of one setting."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[float, ...] = ()

    @classmethod
    def read(cls, values: Fields) -> SearchedRange:
        return cls(
            values.number("low"),
            values.number("high"),
            bool(values.flag("log")),
            values.numbers("choices"),
        )

    def __str__(self) -> str:
        """`0.01 to 1`, or `0, 0.9 or 0.99`."""
        if self.choices:
            *most, last = map(number, self.choices)
            return f"{', '.join(most)} or {last}" if most else last
        ends = (
            "" if self.low is None or self.high is None else (number(self.low), number(self.high))
        )
        return " to ".join(ends if len(set(ends)) > 1 else ends[:1])


@dataclass(frozen=True)
class TuningResult(RunResult):
    """The result of `trajmatch tune`."""

    trials: tuple[Tried, ...] = ()
    best: int = 0
    """The number of the best trial."""
    ranges: Mapping[str, SearchedRange] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    """Setting -> its share in how validation accuracy varies; empty for too few trials."""

    @classmethod
    def read(cls, values: Fields) -> TuningResult:
        trials = tuple(map(Tried.read, values.inners("trials")))
        best = values.require_count("best")
        done = {tried.number for tried in trials if tried.state == "complete"}
        if best not in done:
            raise FileFormatError(
                f"{values.file}: best is {best}, which is no completed trial; run the command again"
            )
        importance, ranges = values.inner("importance"), values.inner("ranges")
        return cls(
            **cls.shared(values),
            trials=trials,
            best=best,
            ranges={}
            if ranges is None
            else {
                name: SearchedRange.read(Fields.of(value, values.file, f"ranges.{name}"))
                for name, value in ranges.values.items()
            },
            importance={}
            if importance is None
            else {name: importance.require_number(name, 0, 1) for name in importance.values},
        )

    @property
    def best_tried(self) -> Tried:
        return next(tried for tried in self.trials if tried.number == self.best)

    @property
    def first(self) -> Tried | None:
        """The trial of the recipe's own settings; None where it is not there."""
        return next((tried for tried in self.trials if tried.number == 0), None)

    @property
    def best_folder(self) -> Path:
        """Of the best set, within the folder of the tuning."""
        return Path("trials") / f"{self.best:04d}" / "best"

    def command_of(self, out: Path) -> list[str]:
        """The words that run the best settings, with a test: `trajmatch run OUT/best.toml ...`."""
        words = ["trajmatch", "run", str(out / "best.toml")]
        if self.library is not None and self.library.path:
            words += ["--experts", self.library.path]
        return [*words, "--out", f"{out}-best"]

    def summary(self) -> str:
        """The best trial beside the recipe's own settings, in a sentence."""
        best, first = self.best_tried, self.first
        counts = {state: sum(t.state == state for t in self.trials) for state in STATES}
        words = f"{len(self.trials)} trials, {counts['pruned']} of them stopped early"
        words += f", {counts['failed']} failed" if counts["failed"] else ""
        text = f"{words}; best: trial {best.number}, validation accuracy {_words(best)}"
        if first is not None and first.state == "complete" and first is not best:
            return f"{text}; the recipe's own settings: {_words(first)}"
        return f"{text}, which has the recipe's own settings" if first is best else text


def _words(tried: Tried) -> str:
    """`88.1 +- 1.2 % (n=2)`."""
    mean = "-" if tried.mean is None else f"{tried.mean:.1f}"
    sd = "" if tried.sd is None else f" +- {tried.sd:.1f}"
    return f"{mean}{sd} % (n={tried.n})"
