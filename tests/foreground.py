"""Processes of tests get signals as in a terminal."""

from __future__ import annotations

import signal


def as_in_the_foreground() -> None:
    """For a new process: a shell starts what it runs in the background with Ctrl-C ignored, and
    nohup with SIGHUP."""
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
