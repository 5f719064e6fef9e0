"""stdin, stdout and stderr of the program, in whatever state it was started with."""

from __future__ import annotations

import os
import sys


def prepare_streams() -> None:
    """Have stdout and stderr write every character: one that their encoding lacks as an escape, and
    all to nowhere where the stream was closed before the program began (`>&-`)."""
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        stream = getattr(sys, name)
        if stream is None:  # its number would be given to the next file that is opened
            mode = "r" if name == "stdin" else "w"
            opened = open(os.open(os.devnull, flags), mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, opened)
        elif name != "stdin" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
