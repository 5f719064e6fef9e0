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
from trajmatch.pipeline.checks import load, require_recipe
from trajmatch.pipeline.continuation import as_begun
from trajmatch.pipeline.distill import distill
from trajmatch.pipeline.evaluate import compare_on_test
from trajmatch.pipeline.experts import full_data_score, train_experts
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage import write_result


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    data: ImageDataset | None = None,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Experts, distillation, its test accuracy, and random and herding beside it, in one folder.

    `out`/experts is the library; `out` itself is the run that `report` draws. Every stage continues
    where an earlier call stopped. Returns the contents of result.json. Experts are trained for a
    method that matches none as well: herding and the accuracy of the full data are theirs.

    data: those that `recipe.data` names, where they are loaded already. `cost.estimate` says
    beforehand what a run will take. progress: None shows a display where a person is looking.
    """
    with shown_or(progress) as observer:
        return _run(recipe, Path(out), data or load(recipe.data), resources, observer)


def _run(
    recipe: Recipe, out: Path, data: ImageDataset, resources: Resources, progress: Progress
) -> dict[str, Any]:
    began = time.perf_counter()
    require_recipe(recipe, data)
    library = train_experts(
        data,
        out / "experts",
        network=recipe.network,
        config=recipe.experts,
        whitening=recipe.data.whitening,
        seed=recipe.seed,
        resources=resources,
        progress=progress,
    )
    ceiling = full_data_score(library)
    progress.message(
        f"experts: {len(library.experts)} of {library.epochs} epochs, test accuracy {ceiling}"
    )
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
    scores = compare_on_test(
        outcome.best,
        data,
        library,
        recipe.evaluate,
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
        seconds=time.perf_counter() - began,
        device=str(resources.device),
    )
    return write_run(out, finished)


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
    """On the test split."""
    seconds: float
    """Of the whole command; those of the outer loop are the outcome's."""
    device: str


def write_run(out: Path, run: FinishedRun) -> dict[str, Any]:
    """Write result.json of a distillation into the folder `out` and return its contents."""
    outcome = run.outcome
    return write_result(
        out,
        command=run.command,
        settings=run.settings,
        seed=run.seed,
        scores=[score.to_json() for score in run.scores],
        data=run.data.summary(),
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
        },
    )
