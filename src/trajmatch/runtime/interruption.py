"""SIGINT (Ctrl-C), SIGTERM and SIGHUP, as a program wants them: saved work, one line, an exit code.

`catch_signals` belongs to the command line alone; in a library's caller Python's own handling
stays. This module imports nothing heavy, so that it can be in place before anything else is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class Interruption(KeyboardInterrupt):
    """A signal, raised in the main thread. `code` is the exit code that shells expect, 128 plus
    the signal's number: 130, 143, 129."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{_word(number)}; run the same command again to continue")
        self.code = 128 + number


class _State:
    """What `_receive` has to know."""

    number: int | None = None
    """The first signal that came."""
    postponed: bool = False
    """Whether the first signal waits for `raise_pending`."""
    exiting: bool = False
    """Whether any signal ends the process at once."""


def catch_signals() -> None:
    """Have the first signal raise `Interruption` in the main thread, and a second one end the
    process at once. Signals that are ignored, as SIGHUP under nohup, stay so.

    During an import the first one ends the process at once too: an exception there can leave C
    libraries half initialized, and there is nothing to save yet.
    """
    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _receive)


def exit_on_signals() -> None:
    """From here on, at the end of the program, a signal ends the process at once."""
    _State.exiting = True


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """In the block the first signal waits for `raise_pending`; the second still ends the
    process."""
    before, _State.postponed = _State.postponed, True
    try:
        yield
    finally:
        _State.postponed = before


@contextlib.contextmanager
def immediate() -> Iterator[None]:
    """Inside `postponed`: a block where a signal is raised at once, one that waits first of all."""
    before, _State.postponed = _State.postponed, False
    try:
        raise_pending()
        yield
    finally:
        _State.postponed = before


def pending() -> bool:
    """Whether a signal waits."""
    return _State.number is not None


def raise_pending() -> None:
    """Raise `Interruption` if a signal waits."""
    if _State.number is not None:
        number, _State.number = _State.number, None
        raise Interruption(number)


def raise_lost() -> None:
    """Raise `Interruption` again if one was raised before and something caught it; not where
    signals are postponed."""
    if not _State.postponed:
        raise_pending()


def _receive(number: int, frame: FrameType | None) -> None:
    first = _State.number is None and not _State.exiting
    _State.exiting = True
    if first and _State.postponed:
        _State.number = number
        _write(f"{_word(number)}; stopping when this iteration is done; again: at once")
    elif first and not _importing(frame):
        # Python drops what is raised in a destructor, and other packages what they catch: then
        # `raise_lost` raises it again.
        _State.number = number
        raise Interruption(number)
    else:
        _write(str(Interruption(number)))
        os._exit(128 + number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _word(number: int) -> str:
    name = signal.Signals(number).name
    return "interrupted" if name == "SIGINT" else f"interrupted by {name}"


def _write(line: str) -> None:
    """To stderr, past Python's buffer, which a signal handler may have interrupted."""
    with contextlib.suppress(OSError):  # the terminal is gone, which SIGHUP says
        os.write(2, f"{line}\n".encode())
