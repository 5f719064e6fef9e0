"""Where a run's numbers go beside its log: TensorBoard or Weights & Biases, if asked for.

No account and no network are ever needed; each library is imported when its tracker is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from trajmatch.errors import SettingError, require_extra, suggest
from trajmatch.storage.trackers.log import LogProgress
from trajmatch.storage.trackers.tensorboard import TensorboardTracker
from trajmatch.storage.trackers.wandb import WandbTracker

__all__ = [
    "TRACKERS",
    "LogProgress",
    "TensorboardTracker",
    "Tracker",
    "TrackerProgress",
    "WandbTracker",
    "open_tracker",
    "require_tracker",
]


@runtime_checkable
class Tracker(Protocol):
    """A place for a run's numbers."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers of one step (an iteration, or an epoch); non-finite ones are allowed."""

    def event(self, name: str, **values: Any) -> None:
        """Something that happened once, with its values."""

    def close(self) -> None:
        """Nothing is logged after this."""


class TrackerProgress:
    """A tracker as the observer of a distillation (`runtime.progress.Progress`): its iterations
    and validations are logged as steps."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        if task == "distill" and values:
            self.tracker.log(done, values)

    def message(self, text: str) -> None:
        pass

    def event(self, name: str, **values: Any) -> None:
        if name == "validation":
            self.tracker.log(int(values.pop("iteration")), values)

    def close(self) -> None:
        self.tracker.close()


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
}
"""name -> tracker of an output folder."""


def require_tracker(name: str) -> None:
    """Refuse a tracker whose library is not installed, before any work is done for it; "none" is
    always there.

    Raises SettingError for an unknown name, MissingExtraError without its library.
    """
    if name == "none":
        return
    if name not in TRACKERS:
        raise SettingError(f"unknown tracker '{name}'; {suggest(name, TRACKERS)}")
    require_extra(f"--track {name}", name, name)  # extra and module have the tracker's name


def open_tracker(name: str, out: str | Path) -> TrackerProgress:
    """The tracker called `name` for the folder `out`, as an observer.

    Raises SettingError for an unknown name, MissingExtraError when its library is not installed.
    """
    if name not in TRACKERS:
        raise SettingError(f"unknown tracker '{name}'; {suggest(name, TRACKERS)}")
    return TrackerProgress(TRACKERS[name](Path(out)))
