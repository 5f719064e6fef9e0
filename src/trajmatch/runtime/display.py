"""Progress on a terminal or in a notebook: `Display`, an observer, and the bars it is made of.

On a terminal each task is a row of a live display (rich). Elsewhere at most one line per ten
seconds is written (`distill: 12/300, loss 0.71, 1.2 s/it, ETA 5 min`), so what ends sooner, tests
among it, writes nothing. Bars go to stderr, messages to stdout.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.units import rough_duration

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

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
        """The work begins or continues now, with `done` items finished before: neither their time
        nor the time since the bar was created counts for the speed."""
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
        self, title: str, total: int, done: int, clock: Callable[[], float], display: RichProgress
    ) -> None:
        super().__init__(title, total, done, clock)
        self._display = display
        self._row = display.add_task(title, total=total, completed=done, note="")

    def _show(self) -> None:
        self._display.update(self._row, completed=self.done, note=self.note())

    def close(self) -> None:
        self._display.remove_task(self._row)


_displays: list[RichProgress] = []
"""The live display, while there is one: a terminal has room for one only."""


@contextlib.contextmanager
def running(
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


def _display() -> RichProgress:
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


SHOWN = ("loss", "step_size", "expert", "epoch", "train_accuracy")
"""Values that a bar shows beside its count."""


class Display:
    """Shows progress where a person is looking. Close it at the end, or use it as a context.

    patience: seconds before anything is shown, so that short work shows nothing.
    """

    def __init__(self, patience: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._began: float | None = None
        self._bars: dict[str, Bar] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        if not self._patient():
            return
        if "network" in values:
            task = f"{values['network']}, {task}"
        known = self._bars.get(task)
        if known is None or done < known.done:  # a second library, or another variant
            bar = self._stack.enter_context(running(task, total, clock=self._clock))
            self._bars[task] = bar
            bar.start(done)
            if task == "distill" and not values and 0 < done < total:
                self.message(f"continuing after iteration {done} of {total}")
                return
        bar = self._bars[task]
        bar.total = total
        bar.advance(done - bar.done, **{name: values[name] for name in SHOWN if name in values})

    def message(self, text: str) -> None:
        if self._patient():
            print(text, flush=True)

    def event(self, name: str, **values: Any) -> None:
        if name == "cell" and values.get("error"):
            self.message(f"{values['variant']}, seed {values['seed']} failed: {values['error']}")

    def close(self) -> None:
        """Remove the bars."""
        self._stack.close()
        self._bars.clear()

    def _patient(self) -> bool:
        now = self._clock()
        self._began = now if self._began is None else self._began
        return now - self._began >= self._patience


PATIENCE = 3.0
"""Seconds after which work called from Python shows its progress."""


@contextlib.contextmanager
def shown_or(progress: Progress | None) -> Iterator[Progress]:
    """`progress`; for None a display where a person is looking (a terminal or a notebook), which
    appears after `PATIENCE` seconds, and else nothing."""
    if progress is not None:
        yield progress
    elif sys.stderr.isatty() or "ipykernel" in sys.modules:
        with Display(PATIENCE) as display:
            yield display
    else:
        yield SILENT
