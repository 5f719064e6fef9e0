"""`trajmatch select`: choose real images (a coreset), the baseline of every made set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, Flat, pick_device
from trajmatch.config import DataConfig, EvaluateConfig, NetworkConfig
from trajmatch.errors import SettingError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Choose --ipc real training images per class, or a --fraction of each class, and save them as
    a small set in OUT/best.

    random needs nothing. herding, k-center and k-means look at features of a trained network and
    need --experts. forgetting trains a network on all images, which takes as long as an expert, and
    takes those it gets right and wrong again most often.
    """

    out: Path = Path("runs/selected")
    """Folder to write to."""
    method: str = "random"
    """random, herding, k-center, k-means or forgetting."""
    ipc: int | None = None
    """Images per class. None: 1, where no --fraction is given."""
    fraction: float | None = None
    """Instead of --ipc, this share of each class's images, and at least one."""
    experts: Path | None = None
    """Library whose first expert gives the features and whose whitening is used."""
    epochs: int | None = None
    """forgetting: epochs of its training. None: the experts', else 50."""
    batch: int | None = None
    """forgetting: real images per SGD step. None: the experts', else 256."""
    lr: float | None = None
    """forgetting: learning rate. None: the experts', else 0.01."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    score: bool = True
    """Train fresh networks on the set and test them."""


def run(flags: Flags) -> None:
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.experts import ExpertLibrary
    from trajmatch.methods.coresets import Share, coreset_of
    from trajmatch.pipeline.checks import require_augmentations
    from trajmatch.runtime.resources import Resources

    began = time.perf_counter()
    if flags.ipc is not None and flags.fraction is not None:
        raise SettingError("--ipc and --fraction both say how many images to choose; give one")
    ipc: int | Share = 1 if flags.ipc is None else flags.ipc
    if flags.fraction is not None:
        ipc = Share(flags.fraction)
    resources = Resources(pick_device(flags.device))
    coreset_of(flags.method)  # refuses an unknown one
    require_augmentations(flags.evaluate.augment)
    library = None if flags.experts is None else ExpertLibrary.open(flags.experts)
    data = shown.load(flags.data)
    training = pipeline.training_like(library, epochs=flags.epochs, batch=flags.batch, lr=flags.lr)
    experts = pipeline.experts_or_untrained(library, data, flags.network, flags.data)
    scores = []
    with shown.progress_of(flags.out, log=True, append=False) as progress:
        chosen = pipeline.select_coreset(
            flags.method,
            data,
            ipc,
            experts,
            training=training,
            seed=flags.seed,
            resources=resources,
            progress=progress,
        )
        chosen.save(flags.out / "best")
        progress.event("selected", method=flags.method, ipc=chosen.ipc, images=len(chosen))
        if flags.score:
            scores = pipeline.evaluate(
                chosen,
                data,
                networks=[flags.network if library is None else library.spec],
                config=flags.evaluate,
                seed=flags.seed,
                resources=resources,
                progress=progress,
            )
    if scores:
        shown.table(scores)
    device = str(resources.device)
    shown.result(flags, "select", data.summary(counts=True), began, scores=scores, device=device)
    print(f"{len(chosen)} images chosen by {flags.method} are in {flags.out / 'best'}")
