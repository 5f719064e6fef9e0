"""From a command line to one call of one command; from a mistake to one line and exit code 2."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import inspect
import logging
import os
import re
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trajmatch._version import __version__
from trajmatch.cli.flags import Common, parse
from trajmatch.errors import TrajmatchError, is_out_of_memory

PROGRAM = "trajmatch"

ABOUT = """\
Dataset distillation by matching training trajectories: a handful of synthetic images that train a
network like the whole set. Experts are trained on the real images and recorded; synthetic images
are learned that lead a student along the same trajectories; fresh networks trained on them alone
are tested on real images."""

_BROKEN_SETTINGS = {
    errno.EACCES: "no permission",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "no space left on the device",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long",
}
"""Operating system errors a person can mend by another path or by making room."""


@dataclasses.dataclass(frozen=True)
class Command:
    """One word after `trajmatch`."""

    flags: type[Common]
    """A frozen dataclass; its docstring is the command's description in --help."""
    run: Callable[[Any], None]
    """Called with an instance of `flags`."""
    summary: str
    """One line for the list of commands."""
    example: str = ""
    """A command line that works, shown in --help."""


def dispatch(commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (None: the process's own), run the command it names, return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    speaker = PROGRAM
    _show_notes()
    try:
        try:
            if not arguments or arguments[0] in ("-h", "--help", "help"):
                print(_overview(commands))
            elif arguments[0] == "--version":
                print(f"{PROGRAM} {__version__}")
            else:
                command = _find(commands, arguments[0])
                speaker = f"{PROGRAM} {arguments[0]}"
                flags = parse(
                    command.flags,
                    arguments[1:],
                    program=speaker,
                    description=_description(command),
                    example=command.example,
                )
                if flags is not None:
                    command.run(flags)
        finally:
            # Flushed here and not at the interpreter's exit, where a closed pipe is a traceback.
            sys.stdout.flush()
    except TrajmatchError as error:
        return _refuse(speaker, str(error))
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to continue")
        return 130
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # another pipe broke, such as one to a worker: a bug, shown as one
        return 141
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        wanted = re.search(r"allocate ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", str(error))
        return _refuse(
            speaker,
            f"memory ran out{f' ({wanted[1]} more were needed)' if wanted else ''}; lower --width, "
            "--ipc, a batch or --workers, or free memory",
        )
    except OSError as error:
        if error.errno not in _BROKEN_SETTINGS:
            raise
        where = f"'{error.filename}': " if error.filename else ""
        return _refuse(speaker, f"{where}{_BROKEN_SETTINGS[error.errno]}; choose another --out")
    return 0


def _find(commands: Mapping[str, Command], word: str) -> Command:
    if word in commands:
        return commands[word]
    known = ", ".join(commands)
    if word.startswith("-"):
        raise TrajmatchError(f"option {word} needs a command before it (commands: {known})")
    close = difflib.get_close_matches(word.lower(), commands, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"commands: {known}"
    raise TrajmatchError(f"unknown command {word}; {hint}")


def _description(command: Command) -> str:
    """The dataclass's docstring, paragraph by paragraph, and the example."""
    text = inspect.cleandoc(command.flags.__doc__ or "")
    # A dataclass without a docstring gets its signature as one; that is no description.
    if not text or text.startswith(f"{command.flags.__name__}("):
        text = command.summary
    paragraphs = [*text.split("\n\n"), f"example: {command.example}" if command.example else ""]
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n\n".join(textwrap.fill(part, width) for part in paragraphs if part)


def _overview(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands), default=0)
    listed = [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
    examples = [f"  {command.example}" for command in commands.values() if command.example]
    parts = [
        f"usage: {PROGRAM} COMMAND [options]",
        ABOUT,
        "\n".join(["commands:", *listed]),
        "\n".join(["examples:", *examples]) if examples else "",
        f"'{PROGRAM} COMMAND --help' explains a command's options. They can come from a file\n"
        "(--config FILE.toml); those on the line win over it.",
    ]
    return "\n\n".join(part for part in parts if part)


def _refuse(speaker: str, message: str) -> int:
    _say(f"{speaker}: {' '.join(message.split())}")
    return 2


class _Notes(logging.Handler):
    """The library's log messages (`compiling ...`), a line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


def _show_notes() -> None:
    notes = logging.getLogger("trajmatch")
    if not any(isinstance(handler, _Notes) for handler in notes.handlers):
        notes.addHandler(_Notes())
        notes.setLevel(logging.INFO)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _reader_is_gone() -> bool:
    """Whether stdout is the pipe that broke (`trajmatch inspect ... | head`)."""
    if not hasattr(select, "poll"):  # Windows: no way to find out, and nothing likelier
        return True
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in watch.poll(0)):
        return False
    # What is still in the buffer would raise again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
