"""result.json as typed values, whichever command wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trajmatch.storage.results.fields import Fields
from trajmatch.storage.results.score import Score


@dataclass(frozen=True)
class DataSummary:
    """The data set that a command worked on."""

    name: str
    train: int | None = None
    """Images in the training split; the same for `val` and `test`."""
    val: int | None = None
    test: int | None = None
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    note: str = ""
    """How the splits were made, where that is unusual."""
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Split -> images of each class; empty where that was not recorded."""

    @classmethod
    def read(cls, values: Fields) -> DataSummary:
        return cls(
            name=values.text("name", "unnamed"),
            train=values.count("train"),
            val=values.count("val"),
            test=values.count("test"),
            classes=values.texts("classes"),
            fingerprint=values.text("fingerprint"),
            note=values.text("note"),
            counts=_class_counts(values.inner("counts")),
        )


@dataclass(frozen=True)
class LibrarySummary:
    """The expert library of a command; accuracies in percent, on the test split."""

    path: str = ""
    experts: int | None = None
    epochs: int | None = None
    accuracy_mean: float | None = None
    accuracy_sd: float | None = None
    n: int | None = None
    """Experts behind the accuracy."""
    bytes: int | None = None
    """Of all trajectory files."""

    @classmethod
    def read(cls, values: Fields) -> LibrarySummary:
        return cls(
            path=values.text("path"),
            experts=values.count("experts"),
            epochs=values.count("epochs"),
            accuracy_mean=values.number("accuracy_mean", 0, 100),
            accuracy_sd=values.number("accuracy_sd", 0, 100),
            n=values.count("n"),
            bytes=values.count("bytes"),
        )


@dataclass(frozen=True)
class Cost:
    """Time and memory of a command; memory in MB (10^6 bytes) at its peak."""

    seconds: float | None = None
    peak_memory_mb: float | None = None
    peak_memory_child_mb: float | None = None
    """Of the largest finished child process."""
    peak_memory_cuda_mb: float | None = None
    """Of tensors on the GPU."""
    device: str = ""
    threads: int | None = None

    @classmethod
    def read(cls, values: Fields) -> Cost:
        return cls(
            seconds=values.number("seconds", 0),
            peak_memory_mb=values.number("peak_memory_mb", 0),
            peak_memory_child_mb=values.number("peak_memory_child_mb", 0),
            peak_memory_cuda_mb=values.number("peak_memory_cuda_mb", 0),
            device=values.text("device"),
            threads=values.count("threads", 1),
        )


@dataclass(frozen=True)
class RunResult:
    """What every result.json holds; a field is empty or None where its entry is absent."""

    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Free-form, as the command line and the recipe gave them."""
    seed: int | None = None
    scores: tuple[Score, ...] = ()
    data: DataSummary | None = None
    library: LibrarySummary | None = None
    network: str = ""
    """The network that the images were made with, in words."""
    versions: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    """ISO 8601, UTC."""
    cost: Cost = Cost()
    best_iteration: int | None = None
    """The iteration whose set was the best on the validation split."""
    last_iteration: int | None = None
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the run chose itself, such as whether to compile."""
    other: Mapping[str, Any] = field(default_factory=dict)
    """Entries that have no field here."""

    @classmethod
    def read(cls, values: Fields) -> RunResult:
        """Of the outermost object of a result.json of this kind."""
        return cls(**cls.shared(values))

    @staticmethod
    def shared(values: Fields) -> dict[str, Any]:
        """The fields that results of all commands share. `decisions` is the name of version 0.1 for
        `resolved`."""
        library = values.inner("library")
        return {
            "command": values.text("command"),
            "settings": values.tree("settings"),
            "seed": values.count("seed"),
            "scores": tuple(map(Score.read, values.inners("scores"))),
            "data": _data(values),
            "library": None if library is None else LibrarySummary.read(library),
            "network": values.network("network"),
            "versions": values.scalars("versions"),
            "started": values.text("started"),
            "cost": Cost.read(values),
            "best_iteration": values.count("best_iteration"),
            "last_iteration": values.count("last_iteration"),
            "resolved": values.tree("resolved") or values.tree("decisions"),
            "other": Fields({"other": _other(values.values)}, values.file).tree("other"),
        }


@dataclass(frozen=True)
class EvaluationResult(RunResult):
    """The result of `trajmatch evaluate`."""

    fingerprint: str = ""
    """Of the set that was tested."""

    @classmethod
    def read(cls, values: Fields) -> EvaluationResult:
        tested = values.inner("set")
        fingerprint = "" if tested is None else tested.text("fingerprint")
        return cls(**cls.shared(values), fingerprint=fingerprint)


def _data(values: Fields) -> DataSummary | None:
    """The data set: an object, or its name alone in an abridged result."""
    if isinstance(values.values.get("data"), str):
        return DataSummary(values.text("data"))
    data = values.inner("data")
    return None if data is None else DataSummary.read(data)


def _class_counts(values: Fields | None) -> dict[str, tuple[int, ...]]:
    return {} if values is None else {split: values.counts(split) for split in values.values}


_KNOWN = {"format", "decisions", "set", "study", "cells", "full"}
_KNOWN |= {"trials", "best", "ranges", "importance"}
_KNOWN |= {one.name for part in (RunResult, Cost) for one in fields(part)}


def _other(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _KNOWN}
