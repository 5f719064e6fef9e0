"""Numbers out of a run: a JSONL log always, TensorBoard or Weights & Biases beside it if asked.

A tracker is anything with the three verbs of `Tracker`. No account and no network are ever needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from trajmatch.errors import SettingError, suggest
from trajmatch.storage.jsonl import JsonlTracker
from trajmatch.storage.trackers.tensorboard import TensorboardTracker
from trajmatch.storage.trackers.wandb import WandbTracker

__all__ = [
    "TRACKERS",
    "TensorboardTracker",
    "Tracker",
    "Trackers",
    "WandbTracker",
    "open_tracker",
]


@runtime_checkable
class Tracker(Protocol):
    """Where a run's numbers go."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers of one step (an iteration, or an epoch); non-finite ones are allowed."""

    def event(self, name: str, **values: Any) -> None:
        """Something that happened once, with what belongs to it."""

    def close(self) -> None:
        """Nothing is logged after this."""


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)

    def event(self, name: str, **values: Any) -> None:
        for tracker in self.trackers:
            tracker.event(name, **values)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
}
"""What may be had beside the JSONL log: name -> tracker of an output folder."""


def open_tracker(
    out: str | Path, extra: str | None = None, *, append: bool = True, until: int | None = None
) -> Tracker:
    """The log `out`/log.jsonl, and beside it the tracker named `extra`.

    `append` and `until` (the step a run is resumed from) are as for `JsonlTracker`. Raises
    SettingError for an unknown name, MissingExtraError when its library is not installed; the log
    is then untouched.
    """
    out = Path(out)
    if extra is None or extra == "none":
        return JsonlTracker(out / "log.jsonl", append, until)
    if extra not in TRACKERS:
        raise SettingError(f"unknown tracker '{extra}'; {suggest(extra, ['none', *TRACKERS])}")
    beside = TRACKERS[extra](out)
    return Trackers([JsonlTracker(out / "log.jsonl", append, until), beside])
