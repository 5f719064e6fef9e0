"""Processes of tests get signals as in a terminal."""

from __future__ import annotations

import signal


def as_in_the_foreground() -> None:
    """For a new process: a shell starts what it runs in the background with Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
