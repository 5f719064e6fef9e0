"""`trajmatch distill`: learn a few images that train a network like the whole set."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trajmatch.cli.flags import Common, Flat, MethodSettings, pick_device
from trajmatch.config import DataConfig, DistillConfig, EvaluateConfig, NetworkConfig

if TYPE_CHECKING:
    from trajmatch.data import ImageDataset
    from trajmatch.experts import ExpertLibrary
    from trajmatch.methods import Method
    from trajmatch.runtime.resources import Resources


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Distill --ipc images per class by --method; mtt matches the experts' training trajectories.
    Of a file in --config, the table [methods.NAME] changes settings for the --method given.

    Network and whitening are the experts', where there are any. The set that scores best on
    validation images, of that it begins with and later ones, is in OUT/best, the newest in
    OUT/last. Run the same command again to continue
    a killed run; a larger --iterations extends a finished one. At the end the best set is tested
    once, beside random and herding images where these can be had, unless --no-test is given.
    """

    out: Path = Path("runs/distilled")
    """Folder of the run."""
    experts: Path | None = None
    """Library to match, from `trajmatch experts`; its network and whitening are used. None:
    runs/experts for a method that matches experts, none for another."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    method: str = "mtt"
    """mtt: trajectories of experts are matched. dd: real images' loss after an unroll; ld: the same
    as a function of labels. dc, dsa: gradients. dm: mean embeddings. cafe: features of every layer.
    kip: kernel inducing points. Or package.module:Name. --help with it shows its settings."""
    settings: Flat[MethodSettings] = MethodSettings()
    distill: Flat[DistillConfig] = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    test: bool = True
    """Test the best set once, beside random and herding images. --no-test looks at no test image:
    for choosing settings, the set is evaluated on validation images alone; the same command without
    it tests the set then chosen. (Experts record their own test accuracy when they are trained.)"""
    threads: int | None = None
    """Threads of the distillation on a CPU. None: one for small work, else one per core; a run that
    is continued keeps its number, as the last bits depend on it."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Where numbers go beside OUT/log.jsonl."""
    dry_run: bool = False
    """Say what it will cost in time and memory, and stop. Nothing is written to OUT."""


def run(flags: Flags) -> None:
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.experts import ExpertLibrary
    from trajmatch.methods import Method
    from trajmatch.runtime.resources import Resources

    began = time.perf_counter()
    method = flags.settings
    assert isinstance(method, Method)
    resources = Resources(pick_device(flags.device), threads=flags.threads)
    _refuse_early(flags, method)
    path = flags.experts or (Path("runs/experts") if method.needs_experts else None)
    library = None if path is None else ExpertLibrary.open(path)
    data = shown.load(flags.data)
    experts = pipeline.experts_or_untrained(library, data, flags.network, flags.data)
    if flags.dry_run:
        _dry_run(flags, method, library, data, resources)
        return
    left_out = shown.left_out(method, flags.distill.ipc, data, library) if flags.test else {}
    with shown.progress_of(flags.out, track=flags.track) as progress:
        outcome = pipeline.distill(
            data,
            method,
            experts,
            flags.out,
            config=flags.distill,
            evaluation=flags.evaluate,
            seed=flags.seed,
            resources=resources,
            progress=progress,
        )
        progress.message(shown.best_of(outcome))
        scores = pipeline.final_scores(
            outcome.best,
            data,
            library,
            flags.evaluate,
            test=flags.test,
            seed=flags.seed,
            out=flags.out,
            resources=resources,
            progress=progress,
        )
    finished = pipeline.FinishedRun(
        command="distill", settings=_settings(flags, method), seed=flags.seed,
        data=data,
        library=library,
        outcome=outcome,
        scores=scores,
        seconds=time.perf_counter() - began,
        device=str(resources.device),
        left_out=left_out,
    )  # fmt: skip
    pipeline.write_run(flags.out, finished)
    shown.table(scores)
    _say_end(flags.out, test=flags.test, textures=outcome.best.canvases is not None)


def _say_end(out: Path, *, test: bool, textures: bool) -> None:
    from trajmatch.cli import shown

    if not test:
        shown.say(shown.untested(out))
    shown.findings(out)
    if textures:
        print(f"the textures are in {out / 'best' / 'textures'}")
    page = f"`trajmatch report {shlex.quote(str(out))}` draws its page"
    print(f"the set is in {out / 'best'}; {page}")


def _refuse_early(flags: Flags, method: Method) -> None:
    """Refuse what takes no data to refuse."""
    from trajmatch.pipeline.checks import require_augmentations
    from trajmatch.storage import require_tracker

    require_tracker(flags.track)
    require_augmentations(getattr(method, "augment", None), flags.evaluate.augment)


def _settings(flags: Flags, method: Method) -> dict[str, Any]:
    """The flags as result.json has them: method and outer loop as one table, as in a recipe."""
    from trajmatch.config import to_dict
    from trajmatch.methods import to_settings

    settings = to_dict(flags)
    del settings["method"], settings["settings"]
    return {**settings, "distill": to_settings(flags.distill, method)}


def _dry_run(
    flags: Flags,
    method: Method,
    library: ExpertLibrary | None,
    data: ImageDataset,
    resources: Resources,
) -> None:
    """Print what distilling, or what is left of it in OUT, will cost; refuses as it would."""
    from trajmatch.cli.cost import say_cost
    from trajmatch.config import ExpertConfig
    from trajmatch.methods.checkpoint import checkpoint_iteration
    from trajmatch.methods.coresets import BASELINES
    from trajmatch.pipeline.checks import (
        baselines_left_out,
        conditions_of,
        require_sound,
        set_ipc,
    )
    from trajmatch.pipeline.cost.done import Done
    from trajmatch.pipeline.cost.shape import Shape
    from trajmatch.pipeline.recipe import Recipe

    recipe = Recipe(
        data=flags.data,
        network=flags.network,
        experts=ExpertConfig(experts=1),
        distill=flags.distill,
        method=method,
        evaluate=flags.evaluate,
    )
    recipe = recipe if library is None else recipe.with_library(library)
    shape = Shape.of(data)
    conditions = conditions_of(
        data,
        shape.network(recipe.network),
        recipe.distill.ipc,
        expert_epochs=None if library is None else library.epochs,
        whitening=recipe.data.whitening,
    )
    require_sound(method, conditions, init=flags.distill.init, evaluation=flags.evaluate)
    done = Done(0 if library is None else len(library.experts), checkpoint_iteration(flags.out))
    left_out = baselines_left_out(
        data, set_ipc(method, flags.distill.ipc, data), experts=library is not None
    )
    compared = 1 + len(BASELINES) - len(left_out) if flags.test else 1
    stages = ("distillation", "evaluation")
    say_cost(recipe, shape, done, resources, stages=stages, compared=compared)
