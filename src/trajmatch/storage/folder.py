"""An output folder: which command made it, and who may write there now.

A command writes `.trajmatch.json` ({"command": "distill"}) when it begins, so a folder says what it
is also when its command was killed. Folders of version 0.1 have no such file and are recognized by
what lies in them. `claim` is what everything that writes to an output folder goes through.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from trajmatch.errors import FileFormatError, SettingError, require_utf8
from trajmatch.runtime.interruption import raise_lost
from trajmatch.storage.files import read_json, write_json
from trajmatch.storage.locks import ProcessLock

MARKER = ".trajmatch.json"
LOCK = ".lock"
_MEMBER = ".member-*.lock"
_PARTIAL = re.compile(r"\.\d+(-[0-9a-f]+)?\.partial")
"""How the name of an unfinished file or folder ends (`files.partial_path`)."""
_FILES = ("result.json", "log.jsonl", "checkpoint.safetensors", "library.json")
_FOLDERS = {
    "distill": ("best", "last", "snapshots"),
    "run": ("best", "last", "snapshots", "experts"),
    "select": ("best",),
    "study": ("experts",),
    "compare": ("experts",),
    "tune": ("experts", "trials"),
}
"""Folders that a command makes in its own."""
REWRITTEN = ("best", "last", "snapshots")
"""What distillation writes anew there."""

_claimed: ContextVar[frozenset[Path]] = ContextVar("_claimed", default=frozenset())
"""Folders that callers of this code have claimed."""


@contextlib.contextmanager
def claim(
    out: Path,
    command: str,
    *,
    also: Sequence[str] = (),
    shared: bool = False,
    data: str | Path | None = None,
) -> Iterator[None]:
    """Hold the folder `out` for `command` in the block; it is created if absent.

    One process at a time, or with `shared` any number that run the same command. What killed
    processes left unfinished is removed when no other process is at work there. Inside a claim,
    another one of the same folder is granted. If the block fails before anything was written, the
    folder is as it was.

    also: commands whose folders are taken as well. data: as for `require_own_folder`.

    Raises SettingError as `require_own_folder` does, and where another process holds the folder.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with claim(Path(folder.name, "run"), "distill"):
        ...     commands_of(Path(folder.name, "run"))
        ('distill',)
        >>> folder.cleanup()
    """
    raise_lost()
    place = _real(out)
    if place in _claimed.get():
        yield
        return
    require_own_folder(out, command, also=also, data=data)
    created = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in place.iterdir()}
    gate, member = _entered(place, out, command, also, wait=shared), None
    try:
        if MARKER not in before:
            write_json(place / MARKER, {"command": command})
        sweep(place)
        if shared:
            member = ProcessLock(place / _MEMBER.replace("*", secrets.token_hex(4)))
            member.acquire()
            gate.release()
        token = _claimed.set(_claimed.get() | {place})
        try:
            yield
        finally:
            _claimed.reset(token)
    except BaseException:
        _leave(place, gate, member)
        _undo(place, before, created)
        raise
    else:
        _leave(place, gate, member)


def require_own_folder(
    out: Path, command: str, *, also: Sequence[str] = (), data: str | Path | None = None
) -> None:
    """Refuse a folder that `command` must not write to; nothing is written here.

    data: the folder of the images, where they come from one.

    Raises SettingError for a file, for a folder of another command than this and those of `also`,
    for the part of a run or a study that nobody has claimed, for a folder where the name of a file
    that will be written belongs to something else, and for a folder in the data, or with the data
    in a part that is written anew.
    """
    require_utf8(str(_real(out)))
    if out.exists() and not out.is_dir():
        raise SettingError(f"{out} is a file; give a folder as --out")
    _require_kinds(out, command)
    found = commands_of(out)
    mine = {command, command.partition(" ")[0], *also}
    if found and not mine & {*found}:
        raise SettingError(
            f"{out} is a folder of `trajmatch {found[0]}`, and `trajmatch {command}` would write "
            "over what it holds; give another --out"
        )
    _require_no_part(out, command)
    if data is not None:
        _require_apart(out, Path(data))


def commands_of(folder: Path) -> tuple[str, ...]:
    """The commands that may have made `folder`, the likeliest first; () for none.

    Raises SettingError for a result.json that is not of this package.
    """
    for file in (MARKER, "result.json", "library.json"):
        if (folder / file).is_file() and (found := _recorded(folder / file)):
            return (found,)
    holds = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if holds & {"checkpoint.safetensors", "snapshots"} and "log.jsonl" in holds:
        return ("distill", "run")
    if (folder / "best" / "distilled.json").is_file():
        return ("select",)
    if "distilled.json" in holds:
        return ("import", "export")
    if any(folder.glob("*/seed*/cell.json")):
        return ("study", "compare")
    return ()


def study_command(name: str) -> str:
    """The command of the study called `name`.

    Examples:
        >>> study_command("init"), study_command("methods")
        ('study init', 'compare')
    """
    return "compare" if name == "methods" else f"study {name}"


def sweep(folder: Path) -> None:
    """Remove unfinished files and folders of processes that have ended, unless a process that
    shares `folder` is alive. The caller must hold the folder's lock."""
    for path in folder.glob(_MEMBER):
        other = ProcessLock(path)
        if not other.acquire():
            return
        other.release(remove=True)
    for path in [*folder.iterdir(), *folder.glob("snapshots/*")]:
        if _PARTIAL.search(path.name) and path.name.endswith(".partial"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _real(path: Path) -> Path:
    """`Path.resolve`, which raises RuntimeError for a link that leads to itself."""
    return Path(os.path.realpath(path))


def _entered(
    place: Path, out: Path, command: str, also: Sequence[str], *, wait: bool
) -> ProcessLock:
    """The folder's lock, acquired. Raises SettingError where another process has it."""
    gate = ProcessLock(place / LOCK)
    while not gate.acquire():
        if not wait:
            raise SettingError(
                f"another process is writing to {out}; wait for it, or give another --out"
            )
        require_own_folder(out, command, also=also)
        time.sleep(0.05)
    try:  # another command may have been here since the first look
        require_own_folder(out, command, also=also)
    except BaseException:
        gate.release()
        raise
    return gate


def _leave(place: Path, gate: ProcessLock, member: ProcessLock | None) -> None:
    """Free the locks. Of those that share a folder, the last removes what killed ones left."""
    if member is not None:
        if place.exists() and gate.acquire(wait=True):
            member.release(remove=True)
            sweep(place)
        member.release()
    gate.release()


def _undo(place: Path, before: set[str], created: Sequence[Path]) -> None:
    """Remove marker and lock where nothing else was added to a folder of the names `before`, and
    the folders `created`."""
    with contextlib.suppress(OSError):
        added = {path.name for path in place.iterdir()} - before
        if MARKER in added and added <= {MARKER, LOCK}:
            for name in added:
                (place / name).unlink()
            for folder in created:
                folder.rmdir()


def _recorded(file: Path) -> str | None:
    """The command that a marker, a result or a library names."""
    values: Any = None
    with contextlib.suppress(FileFormatError):
        values = read_json(file)
    try:
        if file.name == MARKER:
            return str(values["command"])
        if file.name == "library.json":
            return "import" if values["made"].get("imported") else "experts"
        if values["command"] == "study":
            return study_command(values["study"]["name"])
        return str(values["command"])
    except (AttributeError, KeyError, TypeError):
        if file.name != "result.json":
            return None
        raise SettingError(
            f"{file} is not a result of trajmatch, or damaged, and would be written over; move it "
            "away or give another --out"
        ) from None


def _require_kinds(out: Path, command: str) -> None:
    for name in (*_FILES, MARKER, LOCK):
        path = out / name
        if path.exists() and not path.is_file():
            raise SettingError(
                f"{path} is not a regular file, and a file of that name is written there; remove "
                "it or give another --out"
            )
    for name in _FOLDERS.get(command.partition(" ")[0], ()):
        path = out / name
        if path.exists() and not path.is_dir():
            raise SettingError(
                f"{path} is a file, and a folder of that name is made there; remove it or give "
                "another --out"
            )


def _require_no_part(out: Path, command: str) -> None:
    """Refuse the set of a run, and a cell of a study, unless that run or study is at work here."""
    place = _real(out)
    if (place / "cell.json").is_file():
        owner = place.parent.parent
        known = commands_of(owner) or ("study",)
    elif place.name in REWRITTEN and place.is_dir() and not (place / MARKER).exists():
        owner, known = place.parent, commands_of(place.parent)
    else:
        return
    if known and not _claimed.get() & {place, owner}:
        raise SettingError(
            f"{out} is a part of {owner}, a folder of `trajmatch {known[0]}`, and `trajmatch "
            f"{command}` would write over what it holds; give another --out"
        )


def _require_apart(out: Path, data: Path) -> None:
    """Refuse an output folder that is, or lies in, the folder of the images, and images in a part
    of it that is replaced."""
    if not data.is_dir():
        return
    place = _real(out)
    if any(path.exists() and os.path.samefile(path, data) for path in (place, *place.parents)):
        raise SettingError(
            f"the output folder {out} is in the folder of the images, {data}, and what is written "
            "there would become classes; give an --out outside of it"
        )
    above = {_real(data), *_real(data).parents}
    for name in REWRITTEN:
        if place / name in above:
            raise SettingError(
                f"the images {data} lie in {out / name}, which is replaced while the command runs; "
                "give another --out"
            )
