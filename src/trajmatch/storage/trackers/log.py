"""Events of a command in its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trajmatch.runtime.progress import Silent
from trajmatch.storage.jsonl import JsonlTracker

EVENTS = ("epoch", "selected", "score", "cell")


class LogProgress(Silent):
    """Writes `events` to `out`/log.jsonl, which the first of them opens: a refused command writes
    none.

    append: go on with the log of an earlier call, rather than begin it anew.
    """

    def __init__(self, out: Path, events: tuple[str, ...] = EVENTS, append: bool = True) -> None:
        self._out, self._events, self._append = out, events, append
        self._log: JsonlTracker | None = None

    def event(self, name: str, **values: Any) -> None:
        if name not in self._events:
            return
        if self._log is None:
            self._log = JsonlTracker(self._out / "log.jsonl", self._append)
        self._log.event(name, **values)

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            self._log.close()
