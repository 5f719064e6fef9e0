"""`trajmatch doctor`: what keeps a run from a better result, and what to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from trajmatch.cli.flags import Common, Positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Read the log and the scores of a run, finished or not, and print what is wrong with it, a
    line each, with what to change: a loss that does not fall or stays above 1, a step size that
    collapsed, saturated pictures, experts that are too short, accuracy below that of real images,
    accuracy that was still rising at the end.
    """

    run: Positional[Path]
    """Folder of a run: the --out of distill, run or demo."""


def run(flags: Flags) -> None:
    from trajmatch.pipeline.doctor import examine

    found = examine(flags.run)
    for finding in found:
        print(f"{finding.name}: {finding}")
    if not found:
        print("nothing found")
