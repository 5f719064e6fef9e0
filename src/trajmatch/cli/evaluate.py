"""`trajmatch evaluate`: train fresh networks on a small set and test them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from trajmatch.cli.flags import Common, Flat, Positional, pick_device
from trajmatch.config import DataConfig, EvaluateConfig, NetworkConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Train fresh networks on a small set alone and test them on real images.

    The protocol is the paper's: SGD at the set's own step size, momentum 0.9, 1000 epochs, the rate
    dropped once at the middle, DSA. --protocol quick takes 300 epochs. --networks tests the set on
    other networks than the one it was distilled with.
    """

    set: Positional[Path]
    """Folder of a distilled set, such as runs/distilled/best."""
    out: Path = Path("runs/evaluated")
    """Folder for result.json."""
    networks: str | None = None
    """Networks to train, separated by commas: convnet,resnet18,vgg11,alexnet,lenet,mlp,vit.
    None: the one the set was distilled with."""
    protocol: Literal["paper", "quick"] = "paper"
    """quick: 300 epochs instead of --epochs."""
    split: Literal["test", "val"] = "test"
    """Which real images to test on; choose settings on val, report test once."""
    data: Flat[DataConfig] = DataConfig()
    settings: Flat[EvaluateConfig] = EvaluateConfig()


def run(flags: Flags) -> None:
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.config import to_dict
    from trajmatch.evaluation import Score
    from trajmatch.synthetic import SyntheticSet
    from trajmatch.track import write_result

    began = time.perf_counter()
    device = pick_device(flags.device)
    small = SyntheticSet.load(flags.set)
    data = shown.load(flags.data)
    config = flags.settings
    if flags.protocol == "quick":
        config = dataclasses.replace(config, epochs=pipeline.QUICK_EPOCHS)
    names = [name.strip() for name in (flags.networks or "").split(",") if name.strip()]
    with shown.event_log(flags.out) as log:

        def on_score(score: Score) -> None:
            log("score", score.to_json())
            shown.say(f"{score.model}: {score}")

        scores = pipeline.evaluate(
            small,
            data,
            networks=[NetworkConfig(network=name) for name in names] or None,
            config=config,
            split=flags.split,
            seed=flags.seed,
            device=device,
            on_score=on_score,
        )
    write_result(
        flags.out,
        command="evaluate",
        settings=to_dict(flags),
        seed=flags.seed,
        scores=[score.to_json() for score in scores],
        data=data.summary(),
        seconds=time.perf_counter() - began,
        device=device,
    )
    shown.table(scores)
