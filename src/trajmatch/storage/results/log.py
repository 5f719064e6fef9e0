"""log.jsonl as typed lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trajmatch.storage.jsonl import read_log
from trajmatch.storage.results.fields import Fields
from trajmatch.storage.results.score import Trained

Line = TypeVar("Line")


@dataclass(frozen=True)
class IterationLine:
    """One iteration of the outer loop; None for a number that was not finite or not logged."""

    step: int
    loss: float | None
    step_size: float | None
    """The learned one; None for methods that have none."""
    grad_norm: float | None
    skipped: bool
    """Whether the update was skipped."""
    seconds: float | None

    @classmethod
    def read(cls, values: Fields) -> IterationLine:
        return cls(
            step=values.require_count("step"),
            loss=values.number("loss"),
            step_size=values.number("step_size"),
            grad_norm=values.number("grad_norm"),
            skipped=bool(values.number("skipped") or 0),
            seconds=values.number("seconds", 0),
        )


@dataclass(frozen=True)
class ValidationLine:
    """An evaluation on the validation split, in percent."""

    step: int
    mean: float | None
    sd: float | None
    n: int | None
    """Networks trained."""

    @classmethod
    def read(cls, values: Fields) -> ValidationLine:
        return cls(
            step=values.require_count("step"),
            mean=values.number("val_mean", 0, 100),
            sd=values.number("val_sd", 0, 100),
            n=values.count("val_n", 1),
        )


@dataclass(frozen=True)
class NetworkLine:
    """One network of an evaluation."""

    of: str
    """A digest of everything that determines the networks of the evaluation but their number."""
    number: int
    """Which of the networks this is, from 0."""
    result: Trained

    @classmethod
    def read(cls, values: Fields) -> NetworkLine:
        finite = values.flag("finite")
        result = Trained(
            values.require_number("percent", 0, 100),
            finite is not False,
            values.counts("correct") or None,
        )
        return cls(values.text("of"), values.require_count("number"), result)


@dataclass(frozen=True)
class EpochLine:
    """One epoch of an expert's training; accuracy in percent, on its training images."""

    expert: int
    epoch: int
    """From 1."""
    train_loss: float | None
    train_accuracy: float | None
    seconds: float | None

    @classmethod
    def read(cls, values: Fields) -> EpochLine:
        return cls(
            expert=values.require_count("expert"),
            epoch=values.require_count("epoch"),
            train_loss=values.number("train_loss"),
            train_accuracy=values.number("train_accuracy", 0, 100),
            seconds=values.number("seconds", 0),
        )


@dataclass(frozen=True)
class RunLog:
    """The lines of a log by kind, in their order; lines of other kinds are left out.

    A step that was logged twice, before and after a resume, counts with its later line.
    """

    iterations: tuple[IterationLine, ...] = ()
    validations: tuple[ValidationLine, ...] = ()
    networks: tuple[NetworkLine, ...] = ()
    epochs: tuple[EpochLine, ...] = ()

    @classmethod
    def from_json(cls, lines: list[dict[str, Any]], file: str = "the log") -> RunLog:
        """Of the objects that `read_log` gives.

        Raises FileFormatError, with `file` and the line's number, for a wrong type or range.
        """
        iterations: dict[int, IterationLine] = {}
        validations: dict[int, ValidationLine] = {}
        networks: list[NetworkLine] = []
        epochs: list[EpochLine] = []
        for number, line in enumerate(lines, 1):
            values = Fields.of(line, f"{file}, line {number}")
            event = values.text("event")
            if not event and "step" in line:
                if "val_mean" in line:
                    found = ValidationLine.read(values)
                    validations[found.step] = found
                if "loss" in line or "step_size" in line:
                    iteration = IterationLine.read(values)
                    iterations[iteration.step] = iteration
            elif event == "network" and "number" in line:
                networks.append(NetworkLine.read(values))
            elif event == "epoch" and "expert" in line:
                epochs.append(EpochLine.read(values))
        return cls(_by_step(iterations), _by_step(validations), tuple(networks), tuple(epochs))


def load_log(path: str | Path) -> RunLog:
    """The log at `path`, checked.

    A last line without its end is left out: the run was killed in it, or is writing it now.
    Raises FileFormatError for a missing file and for any other line that is damaged.
    """
    return RunLog.from_json(read_log(path), str(path))


def _by_step(lines: Mapping[int, Line]) -> tuple[Line, ...]:
    return tuple(lines[step] for step in sorted(lines))
