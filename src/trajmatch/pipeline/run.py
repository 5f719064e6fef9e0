"""Everything from real images to a result, as one resumable run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch.config import (
    RunConfig,
    to_dict,
)
from trajmatch.data import ImageDataset
from trajmatch.evaluation import Score
from trajmatch.evaluation.batch import Progress as Judging
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Outcome
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import load, require_sound
from trajmatch.pipeline.cost.microbenchmark import require_method_fits
from trajmatch.pipeline.distill import distill, require_method, require_texture
from trajmatch.pipeline.evaluate import compare_on_test
from trajmatch.pipeline.experts import Progress, full_data_score, train_experts
from trajmatch.storage import write_result


def run(
    config: RunConfig,
    out: str | Path,
    *,
    data: ImageDataset | None = None,
    device: str = "cpu",
    workers: int | None = None,
    threads: int | None = None,
    tracker: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    on_progress: Progress | None = None,
    on_iteration: Callable[[int, Mapping[str, float]], None] | None = None,
    on_judging: Judging | None = None,
) -> dict[str, Any]:
    """Experts, distillation, its test accuracy, and random and herding beside it, in one folder.

    `out`/experts is the library; `out` itself is the run that `report` draws. Every stage continues
    where an earlier call stopped. Returns what result.json holds. A method that matches no experts
    has `config.experts` trained all the same: herding and the accuracy of the full data are theirs.

    data: what `config.data` names, where it is loaded already. `cost.estimate` says beforehand what
    a run will take.
    """
    began = time.perf_counter()
    out = Path(out)
    data = data or load(config.data)
    require_method(config.distill, experts=True)
    require_method_fits(network_for(data, config.network), config.distill)
    require_sound(data, config.distill, config.evaluate, config.experts.epochs)
    require_texture(data, config.distill, config.data.whitening)
    library = train_experts(
        data,
        out / "experts",
        network=config.network,
        config=config.experts,
        whitening=config.data.whitening,
        seed=config.seed,
        workers=workers,
        device=device,
        on_progress=on_progress,
    )
    ceiling = full_data_score(library)
    say(f"experts: {len(library.experts)} of {library.epochs} epochs, test accuracy {ceiling}")
    outcome = distill(
        data,
        library,
        out,
        config=config.distill,
        evaluation=config.evaluate,
        seed=config.seed,
        device=device,
        threads=threads,
        tracker=tracker,
        on_iteration=on_iteration,
    )
    say(f"distilled: {outcome.iterations} iterations, kept {outcome.best_iteration}")
    scores = compare_on_test(
        outcome.best,
        data,
        library,
        config.evaluate,
        seed=config.seed,
        device=device,
        out=out,
        say=say,
        on_progress=on_judging,
    )
    return write_run(
        out,
        command="run",
        settings=to_dict(config),
        seed=config.seed,
        data=data,
        library=library,
        outcome=outcome,
        scores=scores,
        seconds=time.perf_counter() - began,
        device=device,
    )


def write_run(
    out: Path,
    *,
    command: str,
    settings: Mapping[str, Any],
    seed: int,
    data: ImageDataset,
    library: ExpertLibrary | None,
    outcome: Outcome,
    scores: Sequence[Score],
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """result.json of a distillation run."""
    return write_result(
        out,
        command=command,
        settings=settings,
        seed=seed,
        scores=[score.to_json() for score in scores],
        data=data.summary(),
        seconds=seconds,
        device=device,
        extra={
            "network": NetworkSpec.from_json(outcome.best.info["network"]).describe(),
            "library": None if library is None else library.summary(),
            "best_iteration": outcome.best_iteration,
            "best_validation": outcome.best_validation,
            "last_iteration": outcome.iterations,
            "distill_seconds": round(outcome.seconds, 3),
            "decisions": outcome.decisions,
        },
    )
