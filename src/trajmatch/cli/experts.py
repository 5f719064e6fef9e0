"""`trajmatch experts`: train experts on real images and record their trajectories."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, Flat, pick_device
from trajmatch.config import DataConfig, ExpertConfig, NetworkConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Train networks on the real images with plain SGD and record their parameters after every
    epoch, into one library that any number of distillations read.

    A killed run continues with what is missing; several commands may fill one library at once;
    a larger --experts extends it.
    """

    out: Path = Path("runs/experts")
    """Folder of the library."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    experts: Flat[ExpertConfig] = ExpertConfig()
    workers: int | None = None
    """Processes of one thread each. None: one per core on the CPU, one on a GPU."""


def run(flags: Flags) -> None:
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import require_augmentations
    from trajmatch.runtime.resources import Resources

    began = time.perf_counter()
    device = pick_device(flags.device)
    require_augmentations(flags.experts.augment)
    data = shown.load(flags.data)
    with shown.progress_of(flags.out, log=True) as progress:
        library = pipeline.train_experts(
            data,
            flags.out,
            network=flags.network,
            config=flags.experts,
            whitening=flags.data.whitening,
            seed=flags.seed,
            resources=Resources(device=device, workers=flags.workers),
            progress=progress,
        )
        ceiling = pipeline.full_data_score(library)
        progress.event("score", **ceiling.to_json())
    shown.result(
        flags,
        "experts",
        data.summary(),
        began,
        scores=[ceiling],
        device=device,
        extra={"library": library.summary()},
    )
    print(f"{len(library.experts)} experts in {flags.out}, test accuracy {ceiling}")
