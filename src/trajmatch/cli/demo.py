"""`trajmatch demo`: the whole job on embedded data, in two minutes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, pick_device
from trajmatch.cli.run import carry_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Distill scikit-learn's handwritten digits into ten images, one per class: train experts,
    match their trajectories, test fresh networks on the ten images beside random and herding ones,
    and draw the page. A minute or two on two cores; nothing is downloaded.
    """

    out: Path = Path("runs/demo")
    """Folder of the run."""
    workers: int | None = None
    """Processes of one thread each. None: one per core."""


def run(flags: Flags) -> None:
    from trajmatch.pipeline.recipe import load_recipe
    from trajmatch.runtime.resources import Resources

    config = dataclasses.replace(load_recipe("digits-ipc1"), seed=flags.seed)
    carry_out(config, flags.out, Resources(pick_device(flags.device), flags.workers))
