"""How far a run is: a live bar on a terminal, now and then a plain line in a log.

    with task("distill", iterations, done=resumed) as bar:
        for ...:
            bar.advance(loss=0.71)

Off a terminal at most one line per ten seconds is written (`distill: 12/300, loss 0.71, 1.2 s/it,
ETA 5 min`), so what ends sooner, tests among it, writes nothing. All of it goes to stderr.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trajmatch.units import rough_duration

if TYPE_CHECKING:
    from rich.progress import Progress

Value = float | int | str

LINE_SECONDS = 10.0
"""Least time between two plain lines."""

_RECENT = 50
"""Items over which speed is taken: a slow first one (a compilation) is soon forgotten."""


class Bar:
    """One running task. `advance` is cheap enough for every iteration."""

    def __init__(self, title: str, total: int, done: int, clock: Callable[[], float]) -> None:
        self.title = title
        self.total = total
        self.done = done
        self.fields: dict[str, Value] = {}
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), done)], maxlen=_RECENT)

    def start(self, done: int) -> None:
        """The work begins or goes on here, with `done` items behind it: neither their time nor any
        that has passed since the bar was made says how long one takes."""
        self.done = done
        self._marks.clear()
        self._marks.append((self._clock(), done))

    def advance(self, n: int = 1, **fields: Value) -> None:
        """`n` more items are done; `fields` are shown beside the count until replaced."""
        self.done += n
        self.fields |= fields
        self._marks.append((self._clock(), self.done))
        self._show()

    @property
    def seconds_per_item(self) -> float | None:
        """Over the last items; None before the first."""
        (start, before), (now, after) = self._marks[0], self._marks[-1]
        return (now - start) / (after - before) if after > before else None

    def note(self) -> str:
        """Fields, speed and time left: `loss 0.71, 1.2 s/it, ETA 5 min`."""
        parts = [f"{name.replace('_', ' ')} {_brief(value)}" for name, value in self.fields.items()]
        pace = self.seconds_per_item
        if pace is not None:
            parts.append(f"{pace:.2g} s/it" if pace < 100 else f"{pace:.0f} s/it")
            if self.done < self.total:
                parts.append(f"ETA {rough_duration(pace * (self.total - self.done))}")
        return ", ".join(parts)

    def _show(self) -> None:
        """Nothing to draw on."""


class _LineBar(Bar):
    """Plain lines, for logs and pipes."""

    def __init__(self, title: str, total: int, done: int, clock: Callable[[], float]) -> None:
        super().__init__(title, total, done, clock)
        self._written = clock()

    def _show(self) -> None:
        now = self._clock()
        if now - self._written >= LINE_SECONDS:
            self._written = now
            line = f"{self.title}: {self.done}/{self.total}"
            print(", ".join(filter(None, (line, self.note()))), file=sys.stderr, flush=True)


class _LiveBar(Bar):
    """One row of a live display that nested tasks share."""

    def __init__(
        self, title: str, total: int, done: int, clock: Callable[[], float], display: Progress
    ) -> None:
        super().__init__(title, total, done, clock)
        self._display = display
        self._row = display.add_task(title, total=total, completed=done, note="")

    def _show(self) -> None:
        self._display.update(self._row, completed=self.done, note=self.note())

    def close(self) -> None:
        self._display.remove_task(self._row)


_displays: list[Progress] = []
"""The live display, while there is one: a terminal has room for one only."""


@contextlib.contextmanager
def task(
    title: str,
    total: int,
    *,
    done: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """Show `total` items being worked off, `done` of them before now (a resumed run).

    Tasks may be nested; on a terminal each is a row.
    """
    if not sys.stderr.isatty():
        yield _LineBar(title, total, done, clock)
        return
    with contextlib.ExitStack() as stack:
        if not _displays:
            _displays.append(stack.enter_context(_display()))
            stack.callback(_displays.clear)
        bar = _LiveBar(title, total, done, clock, _displays[0])
        if len(_displays[0].tasks) > 1:  # a finished inner task makes room for the next
            stack.callback(bar.close)
        yield bar


def _display() -> Progress:
    # Imported here: --help and logs have no use for it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
    )


def _brief(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
