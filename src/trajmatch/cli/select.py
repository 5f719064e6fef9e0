"""`trajmatch select`: choose real images (a coreset), the baseline of every made set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajmatch.cli.flags import Common, Flat, pick_device
from trajmatch.config import DataConfig, EvaluateConfig, NetworkConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Choose --ipc real training images per class and save them as a small set in OUT/best.

    random needs nothing. herding, k-center and k-means look at features of a trained network and
    need --experts. forgetting trains a network on all images, which takes as long as an expert, and
    takes those it gets right and wrong again most often.
    """

    out: Path = Path("runs/selected")
    """Folder to write to."""
    method: str = "random"
    """random, herding, k-center, k-means or forgetting."""
    ipc: int = 1
    """Images per class."""
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

    began = time.perf_counter()
    device = pick_device(flags.device)
    data = shown.load(flags.data)
    library = None if flags.experts is None else ExpertLibrary.open(flags.experts)
    training = pipeline.training_like(library, epochs=flags.epochs, batch=flags.batch, lr=flags.lr)
    scores = []
    with shown.event_log(flags.out) as log:
        with shown.training_progress(flags.method, training) as progress:

            def on_epoch(event: Mapping[str, Any]) -> None:
                log("epoch", event)
                progress(event)

            chosen = pipeline.select_coreset(
                flags.method,
                data,
                flags.ipc,
                experts=library,
                network=None if flags.network == NetworkConfig() else flags.network,
                training=training,
                whitening=flags.data.whitening,
                seed=flags.seed,
                device=device,
                say=shown.say,
                on_progress=on_epoch,
            )
        chosen.save(flags.out / "best")
        log("selected", {"method": flags.method, "ipc": flags.ipc, "images": len(chosen)})
        if flags.score:
            scores = pipeline.evaluate(
                chosen,
                data,
                networks=[flags.network if library is None else library.spec],
                config=flags.evaluate,
                seed=flags.seed,
                device=device,
                on_score=lambda score: log("score", score.to_json()),
            )
            shown.table(scores)
    shown.result(flags, "select", data.summary(), began, scores=scores, device=device)
    print(f"{len(chosen)} images chosen by {flags.method} are in {flags.out / 'best'}")
