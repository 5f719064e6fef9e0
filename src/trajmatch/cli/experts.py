"""`trajmatch experts`: train experts on real images and record their trajectories."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from trajmatch.cli.flags import Common, Flat, pick_device
from trajmatch.config import DataConfig, ExpertConfig, NetworkConfig

if TYPE_CHECKING:
    from trajmatch.runtime.resources import Resources


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
    dry_run: bool = False
    """Say what it will cost in time, disk and memory, and whether the disk has room, and stop.
    Nothing is written to OUT."""


def run(flags: Flags) -> None:
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import require_augmentations
    from trajmatch.runtime.resources import Resources

    began = time.perf_counter()
    device = pick_device(flags.device)
    require_augmentations(flags.experts.augment)
    if flags.dry_run:
        _dry_run(flags, Resources(device=device, workers=flags.workers))
        return
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
        score = pipeline.experts_score(library, data)
        progress.event("score", **score.to_json())
    shown.result(
        flags,
        "experts",
        data.summary(counts=True),
        began,
        scores=[score],
        device=device,
        extra={"library": library.summary()},
    )
    print(f"{len(library.experts)} experts in {flags.out}, test accuracy {score}")


def _dry_run(flags: Flags, resources: Resources) -> None:
    """Print what training them, or what is left of it in OUT, will cost; refuses as it would."""
    from trajmatch.cli.cost import data_or_shape, say_cost
    from trajmatch.experts import ExpertLibrary
    from trajmatch.experts.founding import require_same
    from trajmatch.methods.base import augmentation_of
    from trajmatch.networks.functional import require_stateless
    from trajmatch.pipeline.checks import require_fit
    from trajmatch.pipeline.cost.done import Done
    from trajmatch.pipeline.cost.shape import Shape
    from trajmatch.pipeline.recipe import Recipe

    data = data_or_shape(flags.data)
    shape = data if isinstance(data, Shape) else Shape.of(data)
    require_stateless(shape.network(flags.network).build(seed=0))
    augmentation_of(flags.experts.augment)
    if not isinstance(data, Shape) and (flags.out / "library.json").is_file():
        library, spec = ExpertLibrary.open(flags.out), shape.network(flags.network)
        require_fit(library, data, whitening=flags.data.whitening)
        require_same(library, data, spec, library.whitening, flags.experts, flags.seed)
    recipe = Recipe(data=flags.data, network=flags.network, experts=flags.experts)
    say_cost(recipe, shape, Done.of_experts(flags.out), resources, stages=("experts",))
