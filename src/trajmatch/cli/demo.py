"""`trajmatch demo`: the whole job on embedded data, in two minutes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, pick_device


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
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.recipes import load_recipe
    from trajmatch.report import write_report

    began = time.perf_counter()
    config = dataclasses.replace(load_recipe("digits-ipc1"), seed=flags.seed)
    with shown.run_progress(flags.out, config) as (experts, iterations):
        result = pipeline.run(
            config,
            flags.out,
            device=pick_device(flags.device),
            workers=flags.workers,
            say=shown.say,
            on_progress=experts,
            on_iteration=iterations,
        )
    shown.records(result["scores"])
    print(f"done in {time.perf_counter() - began:.0f} s; the page: {write_report(flags.out)}")
