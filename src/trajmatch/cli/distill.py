"""`trajmatch distill`: learn a few images that train a network like the whole set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trajmatch.cli.flags import Common, Flat, MethodSettings, pick_device
from trajmatch.config import DataConfig, DistillConfig, EvaluateConfig, NetworkConfig

if TYPE_CHECKING:
    from trajmatch.methods import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Distill --ipc images per class by --method; mtt matches the experts' training trajectories.
    Of a file in --config, the table [methods.NAME] changes settings for the --method given.

    Network and whitening are the experts', where there are any. The set that scores best on
    validation images, of that it begins with and later ones, is in OUT/best, the newest in
    OUT/last. Run the same command again to continue
    a killed run; a larger --iterations extends a finished one. At the end the best set is tested
    once, beside random and herding images.
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
    threads: int | None = None
    """Threads of the distillation on a CPU. None: one for small work, else one per core; a run that
    is continued keeps its number, as the last bits depend on it."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Where numbers go beside OUT/log.jsonl."""


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
    path = flags.experts or (Path("runs/experts") if method.needs_experts else None)
    library = None if path is None else ExpertLibrary.open(path)
    data = shown.load(flags.data)
    experts = pipeline.experts_or_untrained(library, data, flags.network, flags.data)
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
        scores = pipeline.compare_on_test(
            outcome.best,
            data,
            library,
            flags.evaluate,
            seed=flags.seed,
            out=flags.out,
            resources=resources,
            progress=progress,
        )
    finished = pipeline.FinishedRun(
        command="distill",
        settings=_settings(flags, method),
        seed=flags.seed,
        data=data,
        library=library,
        outcome=outcome,
        scores=scores,
        seconds=time.perf_counter() - began,
        device=str(resources.device),
    )
    pipeline.write_run(flags.out, finished)
    shown.table(scores)
    if outcome.best.canvases is not None:
        print(f"the textures are in {flags.out / 'best' / 'textures'}")
    print(f"the set is in {flags.out / 'best'}; `trajmatch report {flags.out}` draws its page")


def _settings(flags: Flags, method: Method) -> dict[str, Any]:
    """The flags as result.json has them: method and outer loop as one table, as in a recipe."""
    from trajmatch.config import to_dict
    from trajmatch.methods import to_settings

    settings = to_dict(flags)
    del settings["method"], settings["settings"]
    return {**settings, "distill": to_settings(flags.distill, method)}
