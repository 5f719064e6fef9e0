"""A whole run within a time budget: planned, done, measured as it goes, and ended in time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from trajmatch.config import Constant, DataConfig
from trajmatch.data import ImageDataset
from trajmatch.errors import DataError, SettingError
from trajmatch.methods import MTT
from trajmatch.pipeline.auto.plan import Plan
from trajmatch.pipeline.auto.stages import Stages, new_plan
from trajmatch.pipeline.checks import (
    data_folder,
    load,
    require_augmentations,
    require_validation,
)
from trajmatch.pipeline.recipe import Recipe
from trajmatch.pipeline.run import run
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources
from trajmatch.storage.folder import claim

SIDE = 32
"""Pixels a side where pictures are of many sizes, or larger than `LARGEST`."""
LARGEST = 64


def run_within(
    budget: float,
    start: Recipe,
    out: str | Path,
    *,
    fixed: Collection[str] = (),
    data: ImageDataset | None = None,
    test: bool = True,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Experts, distillation by MTT, and evaluation in about `budget` seconds, with settings that
    follow from the data, the experts and this machine. Returns the contents of result.json.

    start: the data, images per class, and whatever else a person set; settings named in `fixed`,
        such as `experts.batch` or `distill.syn_steps`, stay as they are in it, and the others are
        planned (`plan.make_plan`) and calibrated (`methods.calibration`).
    data: those that `start.data` names, where they are loaded already.

    The plan, with a reason for each decision, is in `out`/plan.json. A run that was interrupted
    goes on with its plan, and has `budget` seconds for what is left; a finished one has no more
    to do. The run ends earlier or later than planned where the machine is faster or slower than at
    the beginning: experts and iterations are cut short at their time, and where time is left,
    further iterations use it.

    Raises SettingError for another method than mtt and for a plan of other settings in `out`,
    DataError for data that cannot be read.

    Examples:
        >>> recipe = Recipe(data=DataConfig(data="photos"))  # doctest: +SKIP
        >>> run_within(1200, recipe, "runs/photos")  # doctest: +SKIP
    """
    require_plannable(start, fixed)
    out, began = Path(out), time.monotonic()
    with claim(out, "run", data=data_folder(start.data)), shown_or(progress) as observer:
        images, config = (data, start.data) if data else load_sized(start.data, observer)
        start = dataclasses.replace(start, data=config)
        require_validation(images)
        stages = Stages(start, images, out, resources, observer, began + budget, tuple(fixed))
        recipe, seconds = stages.prepared(budget)
        return run(
            recipe,
            out,
            data=images,
            test=test,
            resources=resources,
            progress=observer,
            before=seconds,
        )


def plan_within(
    budget: float,
    start: Recipe,
    *,
    fixed: Collection[str] = (),
    data: ImageDataset,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> Plan:
    """What `run_within` would begin with; arguments are its own. Cost: the pilot, a twentieth of
    the budget and at most a minute, beside timing a few steps."""
    require_plannable(start, fixed)
    require_validation(data)
    with shown_or(progress) as observer:
        return new_plan(start, data, budget, fixed, resources, observer)


def require_plannable(recipe: Recipe, fixed: Collection[str] = ()) -> None:
    """Refuse another method, textures, and schedules of as many iterations as nobody knows yet."""
    if not isinstance(recipe.method, MTT):
        raise SettingError(
            f"method is {recipe.method.name}, and only mtt is planned within a budget; name a "
            "recipe, whose settings it takes"
        )
    if recipe.method.texture:
        raise SettingError("texture is not planned within a budget; name a recipe with --texture")
    if recipe.distill.schedule != Constant() and "distill.iterations" not in fixed:
        raise SettingError(
            f"schedule is {recipe.distill.schedule}, which depends on how many iterations there "
            "are, and a budget decides that; give --iterations too, or leave it out"
        )
    require_augmentations(recipe.experts.augment, recipe.method.augment, recipe.evaluate.augment)


def load_sized(
    config: DataConfig, progress: Progress, load: Callable[[DataConfig], ImageDataset] = load
) -> tuple[ImageDataset, DataConfig]:
    """The data, at `SIDE` pixels where no size is given and pictures differ in size, or are larger
    than `LARGEST`; and the config that says so."""
    try:
        data = load(config)
    except DataError:
        if config.size is not None:
            raise
        data = None
    if data is not None and (config.size or max(data.train.images.shape[2:]) <= LARGEST):
        return data, config
    sized = dataclasses.replace(config, size=SIDE)
    smaller = load(sized)
    progress.message(
        f"images are brought to {SIDE}x{SIDE} pixels, as they are larger than {LARGEST}, or of "
        "many sizes; give a --size for another"
    )
    return smaller, sized
