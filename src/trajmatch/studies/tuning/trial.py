"""One trial: a distillation with the values that the sampler draws, in a folder of its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmatch import pipeline
from trajmatch.data import ImageDataset
from trajmatch.errors import (
    DataError,
    FileFormatError,
    MismatchError,
    TrajmatchError,
    is_out_of_memory,
)
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Outcome
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.executor import emit
from trajmatch.runtime.progress import Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage.folder import claim
from trajmatch.studies.tuning.journal import Journal, Place
from trajmatch.studies.tuning.space import setting_of, settings_of

if TYPE_CHECKING:
    from optuna.trial import Trial

_NOT_THE_TRIALS = (MismatchError, FileFormatError, DataError)
"""Errors of folders and data, which say nothing of a trial's settings."""


class Pruned(Exception):
    """A trial whose validations lie below the median of the others at the same iteration."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What all trials of a tuning share; it is sent to each worker."""

    recipe: Recipe
    journal: Journal
    data: ImageDataset
    experts: Path | None
    """The library; None where the method matches none."""
    epochs: int | None
    """Those of its experts that trials may reach."""
    device: str
    threads: int | None
    deadline: float | None
    """When the budget is used, in seconds of `time.time`."""
    first: int
    """The place that is tried whatever the budget."""

    def folder(self, number: int) -> Path:
        """Of the trial at a place."""
        return self.journal.out / "trials" / f"{number:04d}"

    def recipe_of(self, number: int, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a place: of the first the recipe itself, so that it is among the trials."""
        if number == 0:
            return self.recipe
        return self.recipe.with_method(**settings_of(values, self.recipe, self.epochs))


class _Reports(Silent):
    """Reports validations to the pruner, which stops a trial between two iterations, when its
    checkpoint and its best set are written; passes iterations on."""

    def __init__(self, attempt: Trial, place: Place) -> None:
        self.attempt, self.place = attempt, place
        self.reported = set(place.reported)
        # The attempt may have been killed after the validation that was to stop it.
        self.prune = bool(place.reported) and self._is_behind()

    def event(self, name: str, **values: Any) -> None:
        if name != "validation" or values["iteration"] in self.reported:
            return
        self.reported.add(values["iteration"])
        self.attempt.report(values["val_mean"], values["iteration"])
        self.prune = self._is_behind()

    def _is_behind(self) -> bool:
        return self.place.number > 0 and bool(self.attempt.should_prune())

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        emit({"iteration": done, "iterations": total, **values})
        if self.prune and done < total:
            raise Pruned


def run_place(job: Job, place: Place) -> bool:
    """Do the trial of a place and record it in the journal; False where the budget is used.

    A distillation that fails because of its settings, such as one that diverges, is recorded with
    its error, as pruned. Raises what says that folder or data are not sound.
    """
    if job.deadline is not None and place.number != job.first and time.time() >= job.deadline:
        return False
    from optuna.trial import TrialState

    recipe = job.recipe
    own = {name: setting_of(recipe, name) for name in job.journal.ranges}
    attempt = job.journal.draw(place, own)
    study = attempt.study
    recipe = job.recipe_of(place.number, attempt.params)
    try:
        outcome = _distilled(job, recipe, place, _Reports(attempt, place))
    except Pruned:
        study.tell(attempt, state=TrialState.PRUNED)
    except (TrajmatchError, MemoryError, RuntimeError) as error:
        mine = isinstance(error, TrajmatchError) and not isinstance(error, _NOT_THE_TRIALS)
        if not (mine or is_out_of_memory(error)):
            raise
        attempt.set_user_attr("error", " ".join(str(error).split()))
        study.tell(attempt, state=TrialState.PRUNED)
    else:
        attempt.set_user_attr("validation", dict(outcome.best_validation))
        study.tell(attempt, float(outcome.best_validation["mean"]))
    emit({"finished": place.number})
    return True


def _distilled(job: Job, recipe: Recipe, place: Place, progress: _Reports) -> Outcome:
    """The distillation of a trial, a run like any other, with its result.json."""
    began, out = time.perf_counter(), job.folder(place.number)
    library = None
    if job.experts is not None:
        library = ExpertLibrary.open(job.experts).first(recipe.experts.experts)
    untrained = pipeline.Untrained(recipe.network, recipe.data.whitening or "normalize")
    with claim(out, "distill"):
        outcome = pipeline.distill(
            job.data,
            recipe.method,
            library or untrained,
            out,
            config=recipe.distill,
            evaluation=recipe.evaluate,
            seed=recipe.seed,
            resources=Resources(job.device, threads=job.threads),
            progress=progress,
        )
        finished = pipeline.FinishedRun(
            command="distill",
            settings=recipe.to_dict(),
            seed=recipe.seed,
            data=job.data,
            library=library,
            outcome=outcome,
            scores=(),
            seconds=time.perf_counter() - began,
            device=job.device,
        )
        pipeline.write_run(out, finished)
    return outcome
