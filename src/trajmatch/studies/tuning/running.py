"""Tuning: trials of a recipe with other settings, judged on validation images, and the best one.

OUT/experts        the experts of all trials
OUT/study.journal  what was tried (Optuna's journal)
OUT/trials/0007    the distillation of a trial, a run like any other
OUT/best.toml      the recipe of the best trial
OUT/result.json    all of it
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import torch

from trajmatch import pipeline
from trajmatch.config import PublishedConfig, TuneConfig, determining, to_dict
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import data_folder, require_library, require_recipe
from trajmatch.pipeline.recipe import Recipe, load_recipe
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.executor import run_tasks
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage import write_result
from trajmatch.storage.files import atomic_write
from trajmatch.storage.folder import claim
from trajmatch.studies.tuning.journal import Journal, require_optuna
from trajmatch.studies.tuning.space import space_of
from trajmatch.studies.tuning.trial import Job, run_place

BEST = "best.toml"


def tune(
    recipe: Recipe | str,
    out: str | Path,
    config: TuneConfig = TuneConfig(),
    *,
    data: ImageDataset | None = None,
    experts: str | Path | ExpertLibrary | None = None,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search settings of `recipe`'s method that do better on validation images, in the folder
    `out`; no test image is looked at, except by experts trained here, who record their accuracy.

    The first of `config.trials` distillations has the recipe's own settings, so the best is never
    worse, by validation, than these. Values are drawn by Optuna's TPE; a trial that validates below
    the median of the others is stopped early. All trials share the experts, and begin with the same
    images. A call continues what is in `out`, up to `config.trials` in all; a trial that was killed
    is continued with the values it had. Takes as long as its trials: as many distillations.

    recipe: or its name, or the path of a file. experts: a library to match, or its folder; it must
        fit the recipe, as in `pipeline.run`. None: trained in `out`/experts, where they are needed.
    resources: `workers` trials at once, each a process of one thread (None: one, in this process);
        with one, equal seeds give equal trials.
    progress: `update("trials", ...)` and `event("tried", ...)` for each that ends; with one worker
        `update("iterations", ...)`, counted over all trials.

    Returns the contents of `out`/result.json: beside the usual, `ranges`, `trials` {number,
    settings, state (complete, pruned or failed), validation, n, sd, seconds, ...}, `best`, the
    number of a trial, and `importance` {setting: share}. `out`/best.toml is a recipe.

    Raises MissingExtraError without optuna, SettingError for a recipe or a search that cannot be
    run and where no trial completed, MismatchError where `out` was begun with other settings.

    Examples:
        >>> tune("digits-ipc1", "runs/tuned", TuneConfig(trials=30, budget="2h"))  # doctest: +SKIP
    """
    require_optuna()
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    out = Path(out)
    if experts is not None and not isinstance(experts, ExpertLibrary):
        experts = ExpertLibrary.open(experts)
    with claim(out, "tune", data=data_folder(recipe.data)), shown_or(progress) as observer:
        data = data or pipeline.load(recipe.data)
        return _tune(recipe, out, config, data, experts, resources, observer)


def _tune(
    recipe: Recipe,
    out: Path,
    config: TuneConfig,
    data: ImageDataset,
    given: ExpertLibrary | None,
    resources: Resources,
    progress: Progress,
) -> dict[str, Any]:
    began, method = time.perf_counter(), recipe.method
    deadline = None if config.seconds is None else time.time() + config.seconds
    matches = method.needs_experts or method.labels_from_experts
    if given is not None:
        require_library(recipe, data, given)
    epochs = given.epochs if given is not None else recipe.experts.epochs if matches else None
    ranges = space_of(recipe, epochs, config.search)
    require_recipe(recipe, data, epochs=epochs, out=out, resources=resources)
    journal = Journal(out, recipe.seed, ranges)
    plain = {name: value for name, value in recipe.to_dict().items() if name not in _FREE}
    plain["evaluate"] = determining(plain["evaluate"])
    plain["evaluate"].pop("workers", None)
    journal.begin(
        {
            **plain,
            "search": {name: one.to_json() for name, one in ranges.items()},
            "data": {**plain["data"], "data_root": None, "fingerprint": data.fingerprint},
            "library": None if given is None else given.digest,
        }
    )
    library = _experts(recipe, out, given, matches, data, resources, progress)
    places = journal.open_places(config.trials)
    job = Job(
        recipe=recipe,
        journal=journal,
        data=data,
        experts=None if library is None else library.path,
        epochs=epochs,
        device=str(resources.device),
        threads=resources.threads,
        deadline=deadline,
        first=places[0].number if places else 0,
    )
    workers = resources.workers or 1
    observed = _Observed(job, config.trials, workers > 1, progress)
    run_tasks(
        functools.partial(run_place, job),
        places,
        workers=workers,
        threads=1 if workers > 1 else torch.get_num_threads(),
        on_event=observed.receive,
    )
    if len(observed.rows) < config.trials:
        progress.message(
            f"the budget of {config.budget} is used after {len(observed.rows)} of {config.trials} "
            "trials; the same command continues"
        )
    return _written(job, config, library, time.perf_counter() - began)


_FREE = ("name", "about", "published", "methods")
"""Parts of a recipe that change no trial."""


def _experts(
    recipe: Recipe,
    out: Path,
    given: ExpertLibrary | None,
    matches: bool,
    data: ImageDataset,
    resources: Resources,
    progress: Progress,
) -> ExpertLibrary | None:
    """Those given, or trained in `out`/experts; None where the method matches none."""
    if given is not None or not matches:
        return given
    return pipeline.recipe_experts(
        recipe, data, out / "experts", resources=resources, progress=progress
    )


@dataclasses.dataclass
class _Observed:
    """Receives what trials emit, and tells it to the caller's observer."""

    job: Job
    total: int
    several: bool
    """Whether trials run beside each other, whose iterations are then not shown."""
    progress: Progress

    def __post_init__(self) -> None:
        self.rows = finished_rows(self.job)
        if self.rows:
            self.progress.message(f"{len(self.rows)} trials are done already")

    def receive(self, event: dict[str, Any]) -> None:
        if "finished" not in event:
            if not self.several:
                values = {name: event[name] for name in ("loss",) if name in event}
                each = event["iterations"]
                done, total = len(self.rows) * each + event["iteration"], self.total * each
                self.progress.update("iterations", done, total, **values)
            return
        before = best_of(self.rows)
        self.rows = finished_rows(self.job)
        row = next(row for row in self.rows if row["number"] == event["finished"])
        self.progress.event("tried", **row)
        self.progress.message(_words(row, before))
        self.progress.update("trials", len(self.rows), self.total)


def finished_rows(job: Job) -> list[dict[str, Any]]:
    """Every finished trial as plain values, by its number."""
    rows = []
    for number, one in job.journal.finished():
        found = one.user_attrs.get("validation", {})
        error = one.user_attrs.get("error", "")
        shown = list(one.intermediate_values.items())
        mean = found.get("mean", max((value for _, value in shown), default=None))
        recipe = job.recipe_of(number, one.params)
        rows.append(
            {
                "number": number,
                "state": "failed" if error else one.state.name.lower(),
                "settings": {
                    name: getattr(recipe.method, name, getattr(recipe.distill, name, None))
                    for name in job.journal.ranges
                },
                "mean": mean,
                "sd": found.get("sd"),
                "n": found.get("n", job.recipe.distill.eval_networks),
                "iteration": found.get("iteration", max((at for at, _ in shown), default=0)),
                "error": error,
                "seconds": one.duration.total_seconds() if one.duration else None,
            }
        )
    return rows


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The completed trial of the highest validation accuracy, of equal ones the first."""
    done = [row for row in rows if row["state"] == "complete"]
    return max(done, key=lambda row: float(row["mean"]), default=None)


def _words(row: dict[str, Any], before: dict[str, Any] | None) -> str:
    """`trial 7: 88.1 % of the validation images, the best so far`."""
    if row["state"] == "failed":
        return f"trial {row['number']} failed: {row['error']}"
    words = f"trial {row['number']}: validation accuracy {row['mean']:.1f} % (n={row['n']})"
    if row["state"] == "pruned":
        return f"{words}, stopped at iteration {row['iteration']}: below the median"
    is_best = before is None or row["mean"] > before["mean"]
    return f"{words}{', the best so far' if is_best else ''}"


def _written(
    job: Job, config: TuneConfig, library: ExpertLibrary | None, seconds: float
) -> dict[str, Any]:
    """best.toml and result.json. Raises SettingError where no trial completed."""
    rows, recipe, out = finished_rows(job), job.recipe, job.journal.out
    best = best_of(rows)
    if best is None:
        first = next((row["error"] for row in rows if row["error"]), "")
        raise SettingError(f"none of {len(rows)} trials completed; {first or 'give more --trials'}")
    found = recipe.with_method(**{} if best["number"] == 0 else best["settings"])
    found = dataclasses.replace(
        found, name=f"{recipe.name}-tuned", about="", published=PublishedConfig(), methods={}
    )
    with atomic_write(out / BEST) as partial:
        partial.write_text(_heading(best, len(rows)) + found.to_toml(), encoding="utf-8")
    spec = library.spec if library is not None else network_for(job.data, recipe.network)
    return write_result(
        out,
        command="tune",
        settings={**to_dict(config), **recipe.to_dict()},
        seed=recipe.seed,
        scores=[],
        data=job.data.summary(counts=True),
        seconds=seconds,
        device=job.device,
        extra={
            "network": spec.describe(),
            "library": None if library is None else library.summary(),
            "ranges": {name: one.to_json() for name, one in job.journal.ranges.items()},
            "trials": rows,
            "best": best["number"],
            "importance": job.journal.importance(),
        },
    )


def _heading(best: dict[str, Any], count: int) -> str:
    return (
        f"# Trial {best['number']} of {count}: validation accuracy {best['mean']:.1f} % "
        f"(n={best['n']}), the highest.\n\n"
    )
