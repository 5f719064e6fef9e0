"""What keeps a run from a better result, read from its log, and how to change it.

Each check is a function of the evidence, and returns a finding or None. The thresholds are stated
in the checks; they are meant to be missed by a run that goes well.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trajmatch.errors import DataError, FileFormatError
from trajmatch.methods.coresets import BASELINES, CORESETS
from trajmatch.storage.results import (
    CEILING,
    EXPERTS,
    IterationLine,
    LibrarySummary,
    RunLog,
    RunResult,
    Score,
    ValidationLine,
    load_log,
    load_result,
)
from trajmatch.synthetic import SyntheticSet
from trajmatch.units import number, percent

FEWEST = 20
"""Iterations below which losses and step sizes say nothing yet."""


@dataclass(frozen=True)
class Finding:
    """Something that keeps a run from a better result."""

    name: str
    """A short name that stays the same, such as `loss-flat`."""
    problem: str
    """What is wrong, with the numbers."""
    mend: str
    """What to change."""

    def __str__(self) -> str:
        return f"{self.problem}: {self.mend}"


@dataclass(frozen=True)
class Evidence:
    """What a run left in its folder."""

    iterations: tuple[IterationLine, ...] = ()
    validations: tuple[ValidationLine, ...] = ()
    scores: tuple[Score, ...] = ()
    library: LibrarySummary | None = None
    beyond: float | None = None
    """Share of the pictures' values more than half the range outside of it; None without a set."""

    @classmethod
    def of(cls, log: RunLog, result: RunResult, distilled: SyntheticSet | None) -> Evidence:
        beyond = None if distilled is None else _far_beyond(distilled)
        return cls(log.iterations, log.validations, result.scores, result.library, beyond)

    @property
    def main(self) -> Score | None:
        """The test score of the distilled set."""
        real = (*CORESETS, EXPERTS, CEILING)
        return next((score for score in self.scores if score.method not in real), None)

    def losses(self) -> list[float]:
        return [line.loss for line in self.iterations if line.loss is not None]

    def step_sizes(self) -> list[float]:
        return [line.step_size for line in self.iterations if line.step_size is not None]


def examine(folder: str | Path) -> list[Finding]:
    """The findings on the run in `folder`, the gravest first; an unfinished run is examined by its
    log.

    Raises DataError for a folder without a log of iterations, FileFormatError for damaged files.

    Examples:
        >>> for finding in examine("runs/ipc1"):  # doctest: +SKIP
        ...     print(finding)
        the step size fell from 0.01 to 0.0021: start with --step-size 0.005 ...
    """
    folder = Path(folder)
    if not (folder / "log.jsonl").is_file():
        raise DataError(f"{folder} holds no run (no log.jsonl); give the --out of distill or run")
    log = load_log(folder / "log.jsonl")
    if not log.iterations:
        raise DataError(
            f"{folder / 'log.jsonl'} has no iterations; give the --out of distill or run"
        )
    result = load_result(folder) if (folder / "result.json").is_file() else RunResult()
    return findings(Evidence.of(log, result, _distilled(folder)))


def findings(evidence: Evidence) -> list[Finding]:
    """What the checks find, in the order of `CHECKS`."""
    found = (check(evidence) for check in CHECKS)
    return [one for one in found if one is not None]


def _far_beyond(distilled: SyntheticSet) -> float:
    plain = distilled.whitening.invert(distilled.images)
    return float(((plain < -0.5) | (plain > 1.5)).float().mean())


def _distilled(folder: Path) -> SyntheticSet | None:
    try:
        return SyntheticSet.load(folder / "best")
    except (DataError, FileFormatError):
        return None


def _below_herding(evidence: Evidence) -> Finding | None:
    """The set loses to as many chosen real images."""
    main = evidence.main
    others = [score for score in evidence.scores if score.method in BASELINES]
    if main is None or not others:
        return None
    best = max(others, key=lambda score: score.mean)
    if main.mean >= best.mean:
        return None
    return Finding(
        "below-real-images",
        f"the distilled images reach {percent(main.mean, main.sd)} % and as many real ones chosen "
        f"by {best.method} {percent(best.mean, best.sd)} %",
        "mend what is said below; without other findings more --iterations, or a higher --lr-img",
    )


def _loss_above_one(evidence: Evidence) -> Finding | None:
    """The student ends farther from the expert than it began, in a quarter of the later half."""
    losses = evidence.losses()
    later = losses[len(losses) // 2 :]
    above = sum(loss > 1 for loss in later)
    if len(losses) < FEWEST or above < len(later) / 4 or not evidence.step_sizes():
        return None
    return Finding(
        "loss-above-1",
        f"the loss is above 1 in {above} of the last {len(later)} iterations: the student ends "
        "farther from the expert than it began",
        f"a smaller --step-size (now {number(evidence.step_sizes()[-1])}) or fewer --syn-steps, or "
        "longer segments by --expert-epochs",
    )


def _skipped(evidence: Evidence) -> Finding | None:
    """A tenth of the updates was left out."""
    skipped = sum(line.skipped for line in evidence.iterations)
    if len(evidence.iterations) < FEWEST or skipped < len(evidence.iterations) / 10:
        return None
    return Finding(
        "skipped",
        f"{skipped} of {len(evidence.iterations)} updates were skipped, their loss being above "
        "--skip-loss or not finite",
        "a lower --lr-img, or a smaller --step-size",
    )


def _step_size_fell(evidence: Evidence) -> Finding | None:
    """The learned step size is below a third of where it began."""
    sizes = evidence.step_sizes()
    if len(sizes) < FEWEST or sizes[-1] > sizes[0] / 3:
        return None
    return Finding(
        "step-size-fell",
        f"the step size fell from {number(sizes[0])} to {number(sizes[-1])}, where the student "
        "hardly moves",
        f"begin lower, with --step-size {number(sizes[0] / 2, 2)}, or keep it in place with a "
        "smaller rate (--lr-log-step-size, or --lr-lr)",
    )


def _loss_flat(evidence: Evidence) -> Finding | None:
    """The loss fell by less than a twentieth from the first to the last fifth."""
    losses = evidence.losses()
    if len(losses) < FEWEST:
        return None
    fifth = len(losses) // 5
    first, last = statistics.median(losses[:fifth]), statistics.median(losses[-fifth:])
    if last <= 0.95 * first:
        return None
    moves = "a larger --step-size or more --syn-steps" if last > 0.9 else "a higher --lr-img"
    return Finding(
        "loss-flat",
        f"the loss does not fall (median {number(first)} at the beginning, {number(last)} at the "
        "end)",
        moves,
    )


def _experts_short(evidence: Evidence) -> Finding | None:
    """The experts are no better, by the spread, than networks trained on the distilled images."""
    main, library = evidence.main, evidence.library
    if main is None or library is None or library.accuracy_mean is None:
        return None
    if library.accuracy_mean > main.mean + (main.sd or 0.0):
        return None
    return Finding(
        "experts-short",
        f"the experts reach {percent(library.accuracy_mean, library.accuracy_sd)} % after "
        f"{library.epochs} epochs, no more than networks trained on the images do",
        "experts of more --epochs, or a smaller --batch where there are few images, and a larger "
        "--max-start-epoch",
    )


def _saturated(evidence: Evidence) -> Finding | None:
    """Most of the pictures' values are far outside of what a picture can show. (A third of them is
    usual for images learned with ZCA.)"""
    if evidence.beyond is None or evidence.beyond < 0.6:
        return None
    return Finding(
        "saturated",
        f"{100 * evidence.beyond:.0f} % of the pictures' values are far outside of 0 to 255",
        "a lower --lr-img; as tensors the images are used unclipped, so accuracy need not suffer",
    )


def _still_rising(evidence: Evidence) -> Finding | None:
    """The last validation is the best, by more than the spread."""
    known = [line for line in evidence.validations if line.mean is not None]
    if len(known) < 2:
        return None
    last = known[-1]
    before = max(line.mean or 0.0 for line in known[:-1])
    assert last.mean is not None
    if last.mean - before <= max(0.5, last.sd or 0.0):
        return None
    return Finding(
        "still-rising",
        f"validation accuracy was still rising, from {percent(before)} to {percent(last.mean)} % "
        f"at iteration {last.step:,}",
        "the same command with more --iterations continues from there; a run within a budget is "
        "longer with a larger --budget and another --out",
    )


def _never_better(evidence: Evidence) -> Finding | None:
    """No later set was better, by validation, than the one the run began with."""
    known = [line for line in evidence.validations if line.mean is not None]
    if len(known) < 2 or known[0].step != 0:
        return None
    later = max(line.mean or 0.0 for line in known[1:])
    first = known[0].mean or 0.0
    if later > first:
        return None
    return Finding(
        "never-better",
        f"no iteration was better than the images the run began with, {percent(first)} % on "
        f"validation images against {percent(later)} %",
        "mend what else is said here; without other findings a lower --lr-img, more --iterations",
    )


def _fell_back(evidence: Evidence) -> Finding | None:
    """Validation accuracy fell well below its best, and more iterations made it no better."""
    known = [line for line in evidence.validations if line.mean is not None]
    if len(known) < 3:
        return None
    best = max(known, key=lambda line: line.mean or 0.0)
    last = known[-1]
    assert best.mean is not None
    assert last.mean is not None
    if best.mean - last.mean <= max(2.0, 2 * (last.sd or 0.0)):
        return None
    return Finding(
        "fell-back",
        f"validation accuracy fell from {percent(best.mean)} % at iteration {best.step:,} to "
        f"{percent(last.mean)} %",
        "a lower --lr-img or --schedule cosine; --ema 0.95 averages over what jumps",
    )


CHECKS: Sequence[Callable[[Evidence], Finding | None]] = (
    _below_herding,
    _never_better,
    _loss_above_one,
    _skipped,
    _step_size_fell,
    _loss_flat,
    _experts_short,
    _fell_back,
    _saturated,
    _still_rising,
)
