"""Everything from real images to a result, as one resumable run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch.data import ImageDataset
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Outcome
from trajmatch.networks import NetworkSpec
from trajmatch.pipeline.checks import (
    baselines_left_out,
    data_folder,
    left_out_words,
    load,
    require_library,
    require_recipe,
    set_ipc,
)
from trajmatch.pipeline.continuation import as_begun
from trajmatch.pipeline.distill import distill
from trajmatch.pipeline.evaluate import final_scores
from trajmatch.pipeline.experts import experts_score, recipe_experts
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage import write_result
from trajmatch.storage.folder import claim


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    experts: str | Path | ExpertLibrary | None = None,
    data: ImageDataset | None = None,
    test: bool = True,
    resources: Resources = Resources(),
    progress: Progress | None = None,
    before: float = 0.0,
) -> dict[str, Any]:
    """Experts, distillation, its test accuracy, and random and herding beside it, in one folder.

    `out`/experts is the library; `out` itself is the run that `report` draws. Every stage continues
    where an earlier call stopped. Returns the contents of result.json. Experts are trained for a
    method that matches none as well: herding needs them, and their accuracy stands beside.

    experts: a library to match, or its folder, which is not written to; the first
        `recipe.experts.experts` of it are used. It must fit the recipe's network and whitening, as
        those of `recipe.with_library(library)` do. None: trained in `out`/experts.
    test: without it no test image is looked at, and the set is scored on validation images alone:
        for choosing settings. A later call with it tests the set.
    data: those that `recipe.data` names, where they are loaded already. `cost.estimate` says
    beforehand what a run will take. progress: None shows a display where a person is looking.
    before: seconds that stages already done took, which the result counts.
    """
    out = Path(out)
    images = data_folder(recipe.data)
    if experts is not None and not isinstance(experts, ExpertLibrary):
        experts = ExpertLibrary.open(experts)
    with claim(out, "run", data=images), shown_or(progress) as observer:
        data = data or load(recipe.data)
        return _run(recipe, out, experts, data, test, resources, observer, before)


def _run(
    recipe: Recipe,
    out: Path,
    given: ExpertLibrary | None,
    data: ImageDataset,
    test: bool,
    resources: Resources,
    progress: Progress,
    before: float,
) -> dict[str, Any]:
    began = time.perf_counter()
    if given is not None:
        require_library(recipe, data, given)
    epochs = given.epochs if given else None
    require_recipe(recipe, data, epochs=epochs, out=out, resources=resources)
    ipc = set_ipc(recipe.method, recipe.distill.ipc, data)
    left_out = baselines_left_out(data, ipc, experts=True) if test else {}
    for line in left_out_words(left_out):
        progress.message(line)
    library = _experts(recipe, out, given, data, resources, progress)
    reached = f", test accuracy {experts_score(library, data)}" if test else ""
    progress.message(f"experts: {len(library.experts)} of {library.epochs} epochs{reached}")
    outcome = distill(
        data,
        recipe.method,
        library,
        out,
        config=recipe.distill,
        evaluation=recipe.evaluate,
        seed=recipe.seed,
        resources=resources,
        progress=progress,
    )
    progress.message(f"distilled: the best set is that of {outcome.best_words}")
    scores = final_scores(
        outcome.best,
        data,
        library,
        recipe.evaluate,
        test=test,
        seed=recipe.seed,
        out=out,
        resources=resources,
        progress=progress,
    )
    finished = FinishedRun(
        command="run",
        settings=recipe.to_dict(),
        seed=recipe.seed,
        data=data,
        library=library,
        outcome=outcome,
        scores=scores,
        seconds=before + time.perf_counter() - began,
        device=str(resources.device),
        left_out=left_out,
    )
    return write_run(out, finished)


def _experts(
    recipe: Recipe,
    out: Path,
    given: ExpertLibrary | None,
    data: ImageDataset,
    resources: Resources,
    progress: Progress,
) -> ExpertLibrary:
    """The first of those given, or those trained in `out`/experts."""
    if given is not None:
        return given.first(recipe.experts.experts)
    return recipe_experts(recipe, data, out / "experts", resources=resources, progress=progress)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished distillation and its test scores: what result.json of a run says."""

    command: str
    """The command that distilled: run or distill."""
    settings: Mapping[str, Any]
    seed: int
    data: ImageDataset
    library: ExpertLibrary | None
    outcome: Outcome
    scores: Sequence[Score]
    """On the test split; of a run that was not tested, of the set on the validation split."""
    seconds: float
    """Of the whole command; those of the outer loop are the outcome's."""
    device: str
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Baselines that could not be had, and why."""


def _as_begun(run: FinishedRun) -> dict[str, Any]:
    """The settings with the values that were calibrated, or taken from the method, where none were
    given."""
    begun = run.outcome.best.info["settings"]
    table = run.settings["distill"]
    filled = {key: begun.get(key) if value is None else value for key, value in table.items()}
    return {**run.settings, "distill": filled}


def write_run(out: Path, run: FinishedRun) -> dict[str, Any]:
    """Write result.json of a distillation into the folder `out` and return its contents."""
    outcome = run.outcome
    with claim(out, run.command):
        return write_result(
            out,
            command=run.command,
            settings=_as_begun(run),
            seed=run.seed,
            scores=[score.to_json() for score in run.scores],
            data=run.data.summary(counts=True),
            seconds=run.seconds,
            device=run.device,
            threads=outcome.resolved.get("threads"),
            extra={
                "network": NetworkSpec.from_json(outcome.best.info["network"]).describe(),
                "library": None if run.library is None else as_begun(run.library, out).summary(),
                "best_iteration": outcome.best_iteration,
                "best_validation": outcome.best_validation,
                "last_iteration": outcome.iterations,
                "distill_seconds": round(outcome.seconds, 3),
                "resolved": outcome.resolved,
                **({"left_out": dict(run.left_out)} if run.left_out else {}),
            },
        )
