"""The stages of a run within a budget: planned, experts trained, distilled; each ended in time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from trajmatch.data import ImageDataset
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import MTT
from trajmatch.methods.checkpoint import CHECKPOINT, checkpoint_iteration
from trajmatch.methods.loop import StepSizeError
from trajmatch.pipeline.auto.file import Progressed, read_plan, request_of, write_plan
from trajmatch.pipeline.auto.pilot import train_pilot
from trajmatch.pipeline.auto.plan import (
    EXPERTS,
    MOST_EXPERTS,
    PILOT,
    PILOT_SECONDS,
    Plan,
    batch_size,
    make_plan,
)
from trajmatch.pipeline.checks import baselines_left_out, require_recipe
from trajmatch.pipeline.continuation import as_calibrated
from trajmatch.pipeline.distill import distill
from trajmatch.pipeline.experts import recipe_experts
from trajmatch.pipeline.recipe import Recipe
from trajmatch.pipeline.select import select_coreset
from trajmatch.runtime.progress import Progress, Several, Silent
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import cores
from trajmatch.storage.files import atomic_write
from trajmatch.storage.folder import REWRITTEN
from trajmatch.units import duration, rough_duration

START = "start"
"""Folder of the images that distillation begins with."""
RECIPE = "recipe.toml"
"""The recipe that was carried out, for `trajmatch run` and `trajmatch tune`."""
LEAST_EXPERTS = 2
WORTH = 0.1
"""More iterations are done where there is time for at least so many of those that were."""
TESTS = 1.15
"""How much longer a network takes at the end, when it is tested on more images."""


def new_plan(
    start: Recipe,
    data: ImageDataset,
    budget: float,
    fixed: Collection[str],
    resources: Resources,
    progress: Progress,
) -> Plan:
    """From a pilot. Each decision is a message."""
    began, seconds = time.monotonic(), min(PILOT * budget, PILOT_SECONDS)
    progress.message(
        f"a small network is trained for about {rough_duration(seconds)}: what it says of the "
        "images, and how long a step takes here, decides the settings"
    )
    pilot = train_pilot(
        data,
        batch=batch_size(len(data.train)),
        lr=start.experts.lr,
        seconds=seconds,
        seed=start.seed,
        resources=resources,
    )
    count = resources.workers or (cores() if resources.on_cpu else 1)
    left = budget - (time.monotonic() - began)
    plan = make_plan(start, data, pilot, left, cores=count, fixed=fixed)
    for reason in plan.reasons:
        progress.message(reason)
    return plan


class Stopwatch:
    """The seconds that all calls of a run took."""

    def __init__(self) -> None:
        self.began, self.spent = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.began


@dataclasses.dataclass(frozen=True)
class Stages:
    """What is to be done in a folder, and until when."""

    start: Recipe
    data: ImageDataset
    out: Path
    resources: Resources
    progress: Progress
    end: float
    """By `time.monotonic`."""
    fixed: tuple[str, ...]
    clock: Stopwatch = dataclasses.field(default_factory=Stopwatch)

    def prepared(self, budget: float) -> tuple[Recipe, float]:
        """The recipe of a run whose experts and distillation are done, and the seconds that all
        calls took for it."""
        plan, stage, before = self._planned()
        self.clock.spent = before
        if stage == "planned":
            library = self._experts(plan.recipe, time.monotonic() + EXPERTS * budget)
            plan = self._begun(plan, library)
            stage = self._save(plan, "trained")
        if stage == "trained":
            library = ExpertLibrary.open(self.out / "experts")
            library = library.first(plan.recipe.experts.experts)
            recipe = self._distilled(plan.recipe, library, plan.reasons)
            plan = Plan(recipe, plan.reasons)
            with atomic_write(self.out / RECIPE) as path:
                path.write_text(recipe.to_toml(), encoding="utf-8")
            self._save(plan, "distilled")
        return plan.recipe, self.clock.seconds

    def _planned(self) -> Progressed:
        """The plan in the folder, or a new one."""
        found = read_plan(self.out, self._request)
        if found is not None:
            return found._replace(plan=self._here(found.plan))
        left = self.end - time.monotonic()
        plan = new_plan(self.start, self.data, left, self.fixed, self.resources, self.progress)
        require_recipe(plan.recipe, self.data, out=self.out, resources=self.resources)
        return Progressed(plan, self._save(plan, "planned"), 0.0)

    def _here(self, plan: Plan) -> Plan:
        """A plan that was read, with the first images where the folder is now."""
        recipe = plan.recipe
        if "distill.init" in self.fixed or recipe.distill.init in ("real", "noise"):
            return plan
        loop = dataclasses.replace(recipe.distill, init=str(self.out / START))
        return Plan(dataclasses.replace(recipe, distill=loop), plan.reasons)

    @property
    def _request(self) -> dict[str, Any]:
        return request_of(self.start, self.data, self.fixed)

    def _save(self, plan: Plan, stage: str) -> str:
        write_plan(self.out, Progressed(plan, stage, self.clock.seconds), self._request)
        return stage

    def _experts(self, recipe: Recipe, until: float) -> ExpertLibrary:
        """Those that are trained by then, and at least `LEAST_EXPERTS`; as many as a person said,
        however long it takes."""
        folder = self.out / "experts"

        def train(count: int, *observers: Progress) -> ExpertLibrary:
            wanted = dataclasses.replace(recipe.experts, experts=count)
            return recipe_experts(
                dataclasses.replace(recipe, experts=wanted),
                self.data,
                folder,
                resources=self.resources,
                progress=Several(self.progress, *observers),
            )

        count, began = recipe.experts.experts, time.monotonic()
        if "experts.experts" in self.fixed:
            return train(count)
        try:
            library = train(count, Clock(until))
            each = (time.monotonic() - began) / count
            more = min(MOST_EXPERTS - count, int((until - time.monotonic()) / max(each, 1e-3)))
            if more < 1:
                return library
            return train(count + more, Clock(until))
        except OutOfTimeError:
            found = ExpertLibrary.open(folder)
            ready = next(n for n in itertools.count() if n not in found.experts)  # the first n
            few = min(LEAST_EXPERTS, count)
            return train(few) if ready < few else found.first(ready)

    def _begun(self, plan: Plan, library: ExpertLibrary) -> Plan:
        """With the experts that there are, and where distillation begins: at chosen real images,
        where there are enough of each class, so that the result is, by validation, never worse than
        these."""
        experts = dataclasses.replace(plan.recipe.experts, experts=len(library.experts))
        plan = Plan(dataclasses.replace(plan.recipe, experts=experts), plan.reasons)
        ipc = plan.recipe.distill.ipc
        if "distill.init" in self.fixed or baselines_left_out(self.data, ipc, experts=True):
            return plan
        folder = self.out / START
        if not folder.exists():
            chosen = select_coreset("herding", self.data, ipc, library, seed=plan.recipe.seed)
            chosen.save(folder)
        loop = dataclasses.replace(plan.recipe.distill, init=str(folder))
        recipe = dataclasses.replace(plan.recipe, distill=loop)
        return plan.deciding(recipe, "distillation begins with real images chosen by herding")

    def _distilled(
        self, recipe: Recipe, library: ExpertLibrary, reasons: tuple[str, ...]
    ) -> Recipe:
        """Distill until the time that the evaluation needs is left, or as many iterations as a
        person said; the recipe of what was done."""
        networks = 3 * recipe.evaluate.n / recipe.distill.eval_networks
        given = "distill.iterations" in self.fixed
        clock = Clock(math.inf if given else self.end, reserve=TESTS * networks)
        began, first = time.monotonic(), checkpoint_iteration(self.out)
        wanted = max(recipe.distill.iterations, first)
        while True:
            try:
                done = self._distill(recipe, library, wanted, clock)
            except StepSizeError as error:
                recipe, first = self.lower(recipe, error), 0
                self._save(Plan(recipe, reasons), "trained")
                wanted = recipe.distill.iterations
                continue
            spent = time.monotonic() - began
            more = 0 if given else int(clock.left() * (done - first) / spent)
            if done < wanted or more < max(10, WORTH * (done - first)):
                self.progress.message(f"{done:,} iterations in {duration(spent)}")
                return _with_iterations(recipe, done)
            wanted = done + more

    def _distill(
        self, recipe: Recipe, library: ExpertLibrary, iterations: int, clock: Clock
    ) -> int:
        """So many iterations, or those of the last checkpoint before time was out."""

        def loop(count: int, progress: Progress) -> int:
            distill(
                self.data,
                recipe.method,
                library,
                self.out,
                config=_with_iterations(recipe, count).distill,
                evaluation=recipe.evaluate,
                seed=recipe.seed,
                resources=self.resources,
                progress=progress,
            )
            return count

        try:
            return loop(iterations, Several(self.progress, clock))
        except OutOfTimeError:
            return loop(max(1, checkpoint_iteration(self.out)), self.progress)

    def lower(self, recipe: Recipe, error: StepSizeError) -> Recipe:
        """The recipe with half the step size that a run began with, whose step size collapsed, and
        its folder without the run.

        Raises `error` where a step size was given, or it collapsed once already.
        """
        if getattr(recipe.method, "step_size", None) is not None:
            raise error
        method = as_calibrated(recipe.method, self.out)
        assert isinstance(method, MTT)
        self.progress.message(f"begun again, with half the step size: {error}")
        for name in (CHECKPOINT, "log.jsonl"):
            (self.out / name).unlink(missing_ok=True)
        for name in REWRITTEN:
            shutil.rmtree(self.out / name, ignore_errors=True)
        lower = dataclasses.replace(method, step_size=error.first / 2)
        return dataclasses.replace(recipe, method=lower)


def _with_iterations(recipe: Recipe, iterations: int) -> Recipe:
    loop = dataclasses.replace(recipe.distill, iterations=iterations)
    return dataclasses.replace(recipe, distill=loop)


class OutOfTimeError(Exception):
    """The time for a stage is over."""


class Clock(Silent):
    """Ends a computation, by an exception from an update, when its time is over.

    reserve: how many times the time of the last validation is to be left before `end`.
    """

    def __init__(self, end: float, reserve: float = 0.0) -> None:
        self.end, self.reserve = end, reserve
        self.validation = 0.0
        """Seconds of the last one: since the last sign of life before it."""
        self.last = time.monotonic()

    def left(self) -> float:
        """Seconds."""
        return self.end - self.reserve * self.validation - time.monotonic()

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        self.last = time.monotonic()
        if self.left() < 0 and done < total:
            raise OutOfTimeError

    def message(self, text: str) -> None:
        self.last = time.monotonic()  # calibration took until now

    def event(self, name: str, **values: Any) -> None:
        if name == "validation":
            self.validation = time.monotonic() - self.last
        self.last = time.monotonic()
