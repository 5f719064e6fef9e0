"""`trajmatch run` without a recipe: a run within a time budget on a person's own data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmatch.cli.flags import pick_device, value_of
from trajmatch.errors import SettingError
from trajmatch.units import seconds_of

if TYPE_CHECKING:
    from trajmatch.cli.run import Flags
    from trajmatch.pipeline.recipe import Recipe

BUDGET = "20m"


def base(arguments: Sequence[str]) -> dict[str, Any]:
    """The folder after the data's name, and which settings the line gives."""
    values: dict[str, Any] = {"given": tuple(given_settings(arguments))}
    if data := value_of("--data", arguments):
        values["out"] = Path("runs") / (Path(data).stem or "data")
    return values


def given_settings(arguments: Sequence[str]) -> Iterator[str]:
    """The settings that a line gives, as `experts.batch`; of the method as `distill.lr_img`."""
    from trajmatch.config import (
        DataConfig,
        DistillConfig,
        EvaluateConfig,
        ExpertConfig,
        NetworkConfig,
    )
    from trajmatch.methods import MTT

    words = {word.partition("=")[0].replace("_", "-") for word in arguments}
    parts: list[tuple[str, str, Any]] = [
        ("data", "", DataConfig),
        ("network", "", NetworkConfig),
        ("experts", "experts.", ExpertConfig),
        ("distill", "", DistillConfig),
        ("distill", "", MTT),
        ("evaluate", "evaluate.", EvaluateConfig),
    ]
    for part, prefix, kind in parts:
        for field in dataclasses.fields(kind):
            option = field.name.replace("_", "-")
            if words & {f"--{prefix}{option}", f"--{prefix}no-{option}"}:
                yield f"{part}.{field.name}"


def run(flags: Flags) -> None:
    import time

    from trajmatch.cli import shown
    from trajmatch.cli.run import say_result
    from trajmatch.pipeline.auto import load_sized, plan_within, run_within
    from trajmatch.runtime.resources import Resources
    from trajmatch.storage import require_tracker

    began = time.perf_counter()
    budget = _budget(flags)
    start = _start(flags)
    require_tracker(flags.track)
    shown.warn_without_page()
    resources = Resources(pick_device(flags.device), flags.workers, flags.threads)
    track = "none" if flags.dry_run else flags.track
    with shown.progress_of(flags.out, track=track) as progress:
        data, config = load_sized(flags.data, progress, shown.load)
        start = dataclasses.replace(start, data=config)
        left = budget - (time.perf_counter() - began)
        options: dict[str, Any] = {
            "fixed": flags.given,
            "data": data,
            "resources": resources,
            "progress": progress,
        }
        if flags.dry_run:
            plan_within(left, start, **options)
            return
        result = run_within(left, start, flags.out, test=flags.test, **options)
    say_result(result, flags.out, began)


def _budget(flags: Flags) -> float:
    """Seconds. Refuses a line that is for a run with a recipe."""
    if "data.data" not in flags.given:
        raise SettingError(
            "there is neither a RECIPE nor --data; name a recipe (`trajmatch recipes` lists them), "
            "or give --data your images, with --ipc and --budget"
        )
    if flags.library is not None:
        raise SettingError(
            f"--experts is {flags.library}, and without a RECIPE experts are trained within the "
            "budget; leave it out, or use `trajmatch distill`"
        )
    return seconds_of(BUDGET if flags.budget is None else flags.budget)


def _start(flags: Flags) -> Recipe:
    """The settings of the line. Raises SettingError for what cannot be planned."""
    from trajmatch.cli.run import with_flags
    from trajmatch.pipeline.auto import require_plannable
    from trajmatch.pipeline.recipe import Recipe

    start = dataclasses.replace(with_flags(Recipe(), flags), name=flags.out.name)
    require_plannable(start, flags.given)
    return start
