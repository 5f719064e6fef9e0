"""`trajmatch distill`: make a few images that train a network like the whole set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from trajmatch.cli.flags import Common, Flat, pick_device
from trajmatch.config import DataConfig, DistillConfig, EvaluateConfig, NetworkConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Make --ipc images per class: --method mtt by matching the experts' training trajectories.
    --config takes what its table [methods.NAME] changes for the --method given, where it has one.

    Network and whitening are the experts', where there are any. The set that scores best on
    validation images is kept in OUT/best, the newest in OUT/last. Run the same command again to
    continue a killed run; a larger --iterations extends a finished one. At the end the kept set is
    tested once, beside random and herding images. With --texture, --ipc canvases that tile without
    seams are made; they are tested as the crops that cover them, and drawn in OUT/best/textures.
    """

    out: Path = Path("runs/distilled")
    """Folder of the run."""
    experts: Path | None = None
    """Library to match, from `trajmatch experts`; its network and whitening are used. None:
    runs/experts for a method that matches experts, none for another."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    distill: Flat[DistillConfig] = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    threads: int | None = None
    """Threads of the student's walk on a CPU. None: one for small work, else one per core."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Where numbers go beside OUT/log.jsonl."""


def run(flags: Flags) -> None:
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.config import to_dict
    from trajmatch.experts import ExpertLibrary
    from trajmatch.methods import method_class

    began = time.perf_counter()
    device = pick_device(flags.device)
    experts = flags.experts
    if experts is None and method_class(flags.distill.method).needs_experts:
        experts = Path("runs/experts")
    library = None if experts is None else ExpertLibrary.open(experts)
    data = shown.load(flags.data)
    with shown.iteration_progress(flags.distill) as progress:
        outcome = pipeline.distill(
            data,
            library,
            flags.out,
            config=flags.distill,
            evaluation=flags.evaluate,
            network=None if flags.network == NetworkConfig() else flags.network,
            whitening=flags.data.whitening,
            seed=flags.seed,
            device=device,
            threads=flags.threads,
            tracker=flags.track,
            on_iteration=progress,
        )
    print(shown.kept(outcome))
    with shown.evaluation_progress() as judging:
        scores = pipeline.compare_on_test(
            outcome.best,
            data,
            library,
            flags.evaluate,
            seed=flags.seed,
            device=device,
            out=flags.out,
            say=shown.say,
            on_progress=judging,
        )
    pipeline.write_run(
        flags.out,
        command="distill",
        settings=to_dict(flags),
        seed=flags.seed,
        data=data,
        library=library,
        outcome=outcome,
        scores=scores,
        seconds=time.perf_counter() - began,
        device=device,
    )
    shown.table(scores)
    if flags.distill.texture:
        print(f"the textures are in {flags.out / 'best' / 'textures'}")
    print(f"the set is in {flags.out / 'best'}; `trajmatch report {flags.out}` draws its page")
