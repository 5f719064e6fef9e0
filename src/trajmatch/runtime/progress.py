"""The one observer: what a computation reports while it runs.

Every function that takes long accepts `progress`. A terminal, a notebook and a log file are
implementations (`display.Display`); `Silent` ignores all of it; `Several` passes it on.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Three verbs, called in the process that the caller runs in."""

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        """`done` of `total` units of `task` are finished (iterations, epochs ...); `values` are
        shown beside the count. Cheap enough to be called at every iteration."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def event(self, name: str, **values: Any) -> None:
        """Something that happened once (an epoch, a score, a cell), as plain values for a log."""


class Silent:
    """Reports nothing."""

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def event(self, name: str, **values: Any) -> None:
        pass


class Several:
    """Passes every call on to each of several observers, in order."""

    def __init__(self, *observers: Progress) -> None:
        self.observers = observers

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        for observer in self.observers:
            observer.update(task, done, total, **values)

    def message(self, text: str) -> None:
        for observer in self.observers:
            observer.message(text)

    def event(self, name: str, **values: Any) -> None:
        for observer in self.observers:
            observer.event(name, **values)


SILENT = Silent()
