"""A run and its state: what one iteration hands to the next, saved, resumed, and its best set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trajmatch.config import DistillConfig, OuterOptimizer
from trajmatch.errors import DataError, FileFormatError, MismatchError
from trajmatch.evaluation import Score
from trajmatch.methods.base import Method
from trajmatch.methods.checkpoint import Checkpoint
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Tensor


@dataclass(frozen=True)
class Distillation:
    """Everything that determines a run."""

    method: Method
    problem: Problem
    initial: SyntheticParameters
    config: DistillConfig
    package: Callable[[SyntheticParameters, int], SyntheticSet]
    """The set of parameters and iteration."""
    validate: Callable[[SyntheticSet, int], Score]
    """Its score on validation data."""
    origin: Mapping[str, Any]
    """All that determines the numbers; a checkpoint of another origin is refused."""

    @property
    def optimizer(self) -> OuterOptimizer:
        """The outer optimizer, the method's own where none is given."""
        return self.config.optimizer or self.method.default_optimizer


@dataclass
class State:
    """Everything that one iteration hands to the next."""

    parameters: SyntheticParameters
    optimizer: dict[str, Tensor]
    """The outer optimizer's state."""
    average: Tensor
    """Of the images; the images themselves when `ema` is 0."""
    iteration: int = 0
    armed: bool = False
    """Whether a loss has come below `skip_loss`: real images commonly begin above it."""
    skipped_in_a_row: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    """Iteration and validation score of the best set, of those that are due."""
    best_parameters: SyntheticParameters | None = None
    """Of that set; None where a checkpoint of version 0.1 does not have them."""
    final: dict[str, Any] = field(default_factory=dict)
    """The same of the newest set, at the end of a run where no validation is due."""
    written: list[str] = field(default_factory=list)
    """Fingerprints of the sets that were the best so far."""
    seconds: float = 0.0
    validated: bool = False
    """Whether the newest set was validated, or need not be: not at the beginning, and not in a
    checkpoint that was saved when a validation was interrupted."""

    @staticmethod
    def begin(parameters: SyntheticParameters, optimizer: OuterOptimizer) -> State:
        return State(parameters, optimizer.start(parameters.tensors()), parameters.images)

    def averaged(self) -> SyntheticParameters:
        """The parameters with the average of the images."""
        return self.parameters.with_tensors({"images": self.average})

    @property
    def chosen(self) -> tuple[dict[str, Any], SyntheticParameters | None]:
        """The best set of all that were validated: its iteration and score, and its parameters."""
        if self.final and self.final["mean"] > self.best["mean"]:
            return self.final, self.averaged()
        return self.best, self.best_parameters


@dataclass(frozen=True)
class Outcome:
    """Where a run ended."""

    best: SyntheticSet
    last: SyntheticSet
    best_iteration: int
    best_validation: dict[str, Any]
    iterations: int
    seconds: float
    """Of the loop alone, all runs of it together."""
    resolved: dict[str, Any]
    """What the method settled for the run."""

    def __repr__(self) -> str:
        return f"Outcome({self._words()}: {self.best!r})"

    def _repr_html_(self) -> str:
        """The best set and its score, which notebooks show."""
        return f"<div>{self._words()}</div>{self.best._repr_html_()}"

    def _words(self) -> str:
        score = self.best_validation
        sd = "" if score["sd"] is None else f" +- {score['sd']:.1f}"
        return (
            f"best at iteration {self.best_iteration} of {self.iterations}, "
            f"{score['mean']:.1f}{sd} % on validation images (n={score['n']})"
        )

    @property
    def best_words(self) -> str:
        """For example `iteration 80 of 120`, or `iteration 0 of 120: never better than where it
        began`."""
        words = f"iteration {self.best_iteration:,} of {self.iterations:,}"
        return words if self.best_iteration else f"{words}: never better than where it began"


def save_state(out: Path, state: State, run: Distillation) -> None:
    """Write the checkpoint of a run to the folder `out`."""
    Checkpoint(
        state.parameters.tensors(),
        state.optimizer,
        run.problem.state,
        state.average,
        {
            "origin": dict(run.origin),
            "resolved": run.problem.resolved,
            "iteration": state.iteration,
            "armed": state.armed,
            "skipped_in_a_row": state.skipped_in_a_row,
            "best": state.best,
            "final": state.final,
            "written": state.written,
            "seconds": state.seconds,
            "validated": state.validated,
        },
        {} if state.best_parameters is None else state.best_parameters.tensors(),
    ).save(out)


def resumed_state(run: Distillation, out: Path) -> State | None:
    """The state of the checkpoint in `out`; None without one.

    A run that goes on beyond where it ended is without the validation that was due only there.
    """
    fresh = State.begin(run.initial, run.optimizer)
    found = Checkpoint.load(out, fresh.parameters.tensors(), run.origin)
    if found is None:
        return None
    run.problem.resolved.update(found.values["resolved"])
    run.problem.state.update(found.state)
    done = int(found.values["iteration"])
    ended = done >= run.config.iterations
    # A longer run was cut short here: the newest set is validated where a run ends.
    unvalidated = ended and not is_due(run.config, done) and found.values.get("final") == {}
    return State(
        parameters=fresh.parameters.with_tensors(found.parameters),
        optimizer=found.optimizer,
        average=found.average.to(fresh.average),
        iteration=found.values["iteration"],
        armed=found.values["armed"],
        skipped_in_a_row=found.values["skipped_in_a_row"],
        best=found.values["best"],
        best_parameters=fresh.parameters.with_tensors(found.best) if found.best else None,
        final=found.values.get("final", {}) if ended else {},
        written=found.values.get("written", []),
        seconds=found.values["seconds"],
        validated=found.values.get("validated", True) and not unvalidated,
    )


def restore_best(run: Distillation, state: State, out: Path) -> None:
    """Write the best set of a checkpoint to `out`/best where a kill, or a longer run, left another
    of this run there. Raises MismatchError for a set that is not this run's."""
    best, parameters = state.chosen
    if parameters is None:
        return
    wanted = run.package(parameters, int(best["iteration"]))
    found = fingerprint_in(out / "best")
    if found == wanted.fingerprint:
        return
    if found is not None and found not in state.written:
        raise MismatchError(
            f"{out / 'best'} holds a set (fingerprint {found}) that the run in {out} did not write "
            f"there; move it elsewhere, and the run's best set, of iteration {best['iteration']}, "
            "is written again"
        )
    wanted.save(out / "best")


def fingerprint_in(folder: Path) -> str | None:
    """Of the set in a folder; None where there is none that can be read."""
    try:
        return SyntheticSet.load(folder).fingerprint
    except (FileFormatError, DataError):
        return None


def superseded(run: Distillation, state: State | None) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a line of the log is of what a run that goes on from `state` does again: of later
    steps, without a state of all, and validations that were due only where a shorter run ended."""
    config = run.config
    done = -1 if state is None else state.iteration
    best = None if state is None else state.best["iteration"]

    def of_later(line: Mapping[str, Any]) -> bool:
        step = line.get("step")
        if not isinstance(step, int):
            return state is None and line.get("event") == "resolved"
        dropped = "val_mean" in line and not is_due(config, step) and step != best
        return step > done or (dropped and step < config.iterations)

    return of_later


def is_due(config: DistillConfig, iteration: int) -> bool:
    """Whether a set is validated after so many iterations, however many there will be."""
    return iteration % config.eval_every == 0
