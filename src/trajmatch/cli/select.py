"""`trajmatch select`: choose real images (a coreset), the baseline of every made set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, Flat, pick_device
from trajmatch.config import DataConfig, EvaluateConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Choose --ipc real training images per class and save them as a small set in OUT/best.

    random needs nothing; herding looks at features of a trained network and needs --experts.
    """

    out: Path = Path("runs/selected")
    """Folder to write to."""
    method: str = "random"
    """random or herding."""
    ipc: int = 1
    """Images per class."""
    experts: Path | None = None
    """Library whose first expert gives the features and whose whitening is used."""
    data: Flat[DataConfig] = DataConfig()
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
    chosen = pipeline.select_coreset(
        flags.method,
        data,
        flags.ipc,
        experts=library,
        whitening=flags.data.whitening,
        seed=flags.seed,
    )
    chosen.save(flags.out / "best")
    scores = []
    with shown.event_log(flags.out) as log:
        log("selected", {"method": flags.method, "ipc": flags.ipc, "images": len(chosen)})
        if flags.score:
            scores = pipeline.evaluate(
                chosen,
                data,
                networks=None if library is None else [library.spec],
                config=flags.evaluate,
                seed=flags.seed,
                device=device,
                on_score=lambda score: log("score", score.to_json()),
            )
            shown.table(scores)
    shown.result(flags, "select", data.summary(), began, scores=scores, device=device)
    print(f"{len(chosen)} images chosen by {flags.method} are in {flags.out / 'best'}")
