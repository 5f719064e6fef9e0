"""`trajmatch tune`: better settings for a recipe on any data, found on validation images."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajmatch.cli.flags import Flat, pick_device
from trajmatch.cli.run import RecipeFlags, recipe_of
from trajmatch.config import TuneConfig
from trajmatch.errors import MissingExtraError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(RecipeFlags):
    """Search settings that do better than those of a recipe, on any data: trials distill with
    others, all from the same experts, and are judged on validation images; test images are left
    for the best alone. The first trial has the recipe's own settings, so the best is never worse,
    by validation, than these. Needs pip install 'trajmatch[tune]'.

    Searched are, as far as the method has them: lr_img, step_size and its rate (lr_lr), and
    lr_label where labels are learned, from a tenth to ten times the recipe's; syn_steps from half
    to twice; expert_epochs from 1 to twice; max_start_epoch up to the epochs of the experts; ema
    0, 0.9 or 0.99. --search changes that. Values are drawn by Optuna (TPE), and a trial below the
    median of the others at the same iteration is stopped.

    It writes OUT/best.toml, a recipe for `trajmatch run`, and OUT/index.html, a page of all trials.
    Run the same command again, or with more --trials, to continue; with --workers 1 equal seeds
    give equal trials.
    """

    out: Path = Path("runs/RECIPE-tuned")
    """Folder of the search: experts, trials, best.toml and the page."""
    tune: Flat[TuneConfig] = TuneConfig()
    workers: int | None = None
    """Processes of one thread that train experts, and then do trials, one each at a time. None: one
    per core on the CPU for experts (one on a GPU), and one trial at a time in this process."""
    threads: int | None = None
    """Threads of a trial on a CPU. None: one for small work, and beside other trials, else one per
    core."""

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The recipe's settings; the folder is named by the recipe and the method."""
        values = super().base(arguments)
        if "out" in values:
            values["out"] = values["out"].with_name(f"{values['out'].name}-tuned")
        return values


def run(flags: Flags) -> None:
    import time

    from trajmatch.cli import shown
    from trajmatch.report.pages.tuning import write_tuning_report
    from trajmatch.runtime.resources import Resources
    from trajmatch.storage.results import TuningResult, result_from_json
    from trajmatch.studies.tuning import tune
    from trajmatch.studies.tuning.journal import require_optuna

    began = time.perf_counter()
    require_optuna()
    config, _, library = recipe_of(flags, "tune")
    resources = Resources(pick_device(flags.device), flags.workers, flags.threads)
    shown.warn_without_page()
    data = shown.load(config.data)
    with shown.progress_of(flags.out, log=True, events=("tried",)) as progress:
        result = tune(
            config,
            flags.out,
            flags.tune,
            data=data,
            experts=library,
            resources=resources,
            progress=progress,
        )
    found = result_from_json(result)
    assert isinstance(found, TuningResult)
    print(found.summary())
    print(f"the best set: {flags.out / found.best_folder}")
    print(f"test these settings: {shlex.join(found.command_of(flags.out))}")
    try:
        page = f"the page: {write_tuning_report(flags.out)}"
    except MissingExtraError as error:  # hours of work are done and lie in the folder
        page = f"no page: {error}; then give the same command again"
    print(f"done in {time.perf_counter() - began:.0f} s; {page}")
