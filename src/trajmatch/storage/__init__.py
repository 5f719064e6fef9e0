"""What lies on disk: tensor files, checksums, JSON, logs, results; and where numbers go beside."""

from __future__ import annotations

from trajmatch.storage.jsonl import JsonlTracker, read_log
from trajmatch.storage.result import read_result, write_result
from trajmatch.storage.trackers import (
    TRACKERS,
    LogProgress,
    TensorboardTracker,
    Tracker,
    TrackerProgress,
    WandbTracker,
    open_tracker,
    require_tracker,
)

__all__ = [
    "TRACKERS",
    "JsonlTracker",
    "LogProgress",
    "TensorboardTracker",
    "Tracker",
    "TrackerProgress",
    "WandbTracker",
    "open_tracker",
    "read_log",
    "read_result",
    "require_tracker",
    "write_result",
]
