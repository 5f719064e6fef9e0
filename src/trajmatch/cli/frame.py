"""From a command line to one call of one command; from a mistake to one line and exit code 2."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import inspect
import logging
import os
import re
import select
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trajmatch._version import __version__
from trajmatch.cli.flags import Common, parse
from trajmatch.config import DataConfig
from trajmatch.errors import TrajmatchError, is_out_of_memory, naming_flags, require_utf8
from trajmatch.runtime.interruption import Interruption

PROGRAM = "trajmatch"

ABOUT = """\
Dataset distillation by matching training trajectories: a handful of synthetic images that train a
network like the whole set. Experts are trained on the real images and recorded; synthetic images
are learned that lead a student along the same trajectories; fresh networks trained on them alone
are tested on real images."""

_CONDITIONS = {
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE"),
        *("ENAMETOOLONG", "ENOTDIR", "ELOOP"),
    )
    if hasattr(errno, name)
}
"""Operating system errors that say something of the machine, whatever path they are about."""


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
    claims: str = ""
    """The command whose folder --out is (`storage.folder`), with fields of `flags` in braces; empty
    where nothing is written there."""
    shared: bool = False
    """Whether several processes may write there at once."""


def dispatch(commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Parse `argv` (None: the process's own), run the command it names, return the exit code."""
    with naming_flags():
        return _dispatch(commands, list(sys.argv[1:] if argv is None else argv))


def _dispatch(commands: Mapping[str, Command], arguments: list[str]) -> int:
    line = _Line(arguments)
    _show_notes()
    try:
        try:
            line.run(commands)
        finally:
            # Flushed here and not at the interpreter's exit, where a closed pipe is a traceback.
            if sys.stdout is not None:
                sys.stdout.flush()
    except TrajmatchError as error:
        return _refuse(line.speaker, str(error))
    except KeyboardInterrupt as stop:
        found = stop if isinstance(stop, Interruption) else Interruption(signal.SIGINT)
        _say(str(found))
        return found.code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # another pipe broke, such as one to a worker: a bug, shown as one
        return 141
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        wanted = re.search(r"allocate ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", str(error))
        return _refuse(
            line.speaker,
            f"memory ran out{f' ({wanted[1]} more were needed)' if wanted else ''}; lower --width, "
            "--ipc, a batch or --workers, or free memory",
        )
    except OSError as error:
        words = line.about(error)
        if words is None:
            raise
        return _refuse(line.speaker, words)
    return 0


class _Line:
    """One command line, and what is known of it when something fails."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = arguments
        self.speaker = PROGRAM
        self.flags: Common | None = None

    def run(self, commands: Mapping[str, Command]) -> None:
        """Print what is asked for, or run the command."""
        arguments = self.arguments
        for word in arguments:
            require_utf8(word)
        try:
            Path.cwd()
        except FileNotFoundError:
            raise TrajmatchError("the current folder was removed; change to another") from None
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview(commands))
        elif arguments[0] == "--version":
            print(f"{PROGRAM} {__version__}")
        else:
            command = _find(commands, arguments[0])
            self.speaker = f"{PROGRAM} {arguments[0]}"
            self.flags = parse(
                command.flags,
                arguments[1:],
                program=self.speaker,
                description=_description(command),
                example=command.example,
            )
            if self.flags is not None:
                with _claimed(command, self.flags):
                    command.run(self.flags)

    def about(self, error: OSError) -> str | None:
        """One line for an error of the system that is no bug: about a path that the line names, the
        machine, or stdout; None for any other."""
        why = error.strerror or str(error)
        out = None if self.flags is None else _real(self.flags.out)
        given = [_real(path) for path in _paths(self.flags)]
        from trajmatch.storage.files import finished_path  # imports torch

        for name in (error.filename, error.filename2):
            if not isinstance(name, (str, bytes)):
                continue
            path = _real(finished_path(os.fsdecode(name)))
            if out is not None and _related(path, out):
                return f"'{path}': {why}; see that {out} can be written, or give another --out"
            if _is_compilers(path):
                return (
                    f"'{path}': {why}; torch's compiler keeps its cache there: set "
                    "TORCHINDUCTOR_CACHE_DIR to a folder that can be written"
                )
            if any(_related(path, one) for one in given):
                return f"'{path}': {why}; see that it is there and can be read and written"
        if error.errno not in _CONDITIONS:
            return None
        if error.filename is None:
            _drop_failing_stdout()
            return f"{why}; see that stdout and the disk of --out have room and can be written to"
        return f"'{error.filename}': {why}; see that it can be read and written"


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(os.path.expanduser(path)))


def _related(path: Path, given: Path) -> bool:
    """Whether one is the other, or lies in it."""
    return path == given or given in path.parents or path in given.parents


def _is_compilers(path: Path) -> bool:
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if chosen and _related(path, _real(chosen)):
        return True
    return any(part.startswith("torchinductor_") for part in path.parts)


def _paths(value: Any) -> Iterator[str | Path]:
    """Every path among flags, and the data that they name."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, DataConfig):
        yield from (path for path in (value.data, value.data_root) if path is not None)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in vars(value).values():
            yield from _paths(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _paths(part)


def _claimed(command: Command, flags: Common) -> AbstractContextManager[None]:
    """Holds --out while the command runs; a dry run looks only whether it could."""
    if not command.claims:
        return contextlib.nullcontext()
    from trajmatch.pipeline.checks import data_folder
    from trajmatch.storage.folder import claim, require_own_folder

    name, data = command.claims.format(**vars(flags)), vars(flags).get("data")
    images = data_folder(data) if isinstance(data, DataConfig) else None
    if vars(flags).get("dry_run"):
        require_own_folder(flags.out, name, data=images)
        return contextlib.nullcontext()
    return claim(flags.out, name, shared=command.shared, data=images)


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
    with contextlib.suppress(OSError, ValueError):  # stderr is closed, or its terminal gone
        print(line, file=sys.stderr, flush=True)


def _drop_failing_stdout() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_stdout()


def _reader_is_gone() -> bool:
    """Whether stdout is the pipe that broke (`trajmatch inspect ... | head`)."""
    if not hasattr(select, "poll"):  # Windows: no way to find out, and nothing likelier
        return True
    watch = select.poll()
    watch.register(sys.stdout.fileno(), 0)
    if not any(state & (select.POLLERR | select.POLLHUP) for _, state in watch.poll(0)):
        return False
    _drop_stdout()
    return True


def _drop_stdout() -> None:
    """What is still in its buffer would raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
