"""The log of a run: one JSON object a line, readable while the run goes on.

`trajmatch.storage.results.load_log` reads it into typed lines.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trajmatch.errors import FileFormatError
from trajmatch.storage.digest import with_digest, without_digest
from trajmatch.storage.files import atomic_write, parse_json

log = logging.getLogger("trajmatch")

IDENTITY: dict[str, tuple[str, ...]] = {
    "cell": ("variant", "seed", "at", "mean", "error"),
    "epoch": ("expert", "epoch"),
    "network": ("of", "number"),
    "score": ("of", "n", "method", "model"),
    "trial": ("of", "n"),
    "tried": ("number",),
}
"""Entries by which an event is known again: what is resumed reports some a second time."""

_ANNOUNCED: set[str] = set()
"""Lines on damage that this process has given out."""


class JsonlTracker:
    """Writes `{"time", "step", ...}` per `log` and `{"time", "event", ...}` per `event`.

    Each line reaches the operating system before the call returns, so a killed run loses nothing
    but the line it was writing. It ends with a digest of the rest. JSON has no NaN: non-finite
    numbers are written as null.
    """

    def __init__(
        self,
        path: str | Path,
        append: bool = True,
        drop: Callable[[Mapping[str, Any]], bool] = lambda line: False,
    ) -> None:
        """Open `path`, continuing it when `append` and emptying it otherwise.

        Continuing drops a last line that a kill tore off, lines that are damaged (each with a
        warning of the logger "trajmatch"), and those that `drop` is true of: a run resumed from the
        checkpoint of a step logs the steps after it again.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._known: set[Hashable] = set()
        if append and self.path.exists():
            self._continue(drop)
        self._file = self.path.open(
            "a" if append else "w", buffering=1, encoding="utf-8", errors="backslashreplace"
        )

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._write({"step": step, **values})

    def event(self, name: str, **values: Any) -> None:
        """One of `IDENTITY` is written once, whichever process logged it first."""
        line = {"event": name, **values}
        if not self._repeats(jsonable(line)):
            self._write(line)

    def close(self) -> None:
        self._file.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        line = with_digest(jsonable({"time": round(time.time(), 3), **values}))
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _repeats(self, line: Mapping[str, Any]) -> bool:
        """Whether an event was logged before; from now on it was."""
        entries = IDENTITY.get(str(line.get("event")))
        if entries is None:
            return False
        identity = json.dumps([line["event"], *(line.get(entry) for entry in entries)])
        known = identity in self._known
        self._known.add(identity)
        return known

    def _continue(self, drop: Callable[[Mapping[str, Any]], bool]) -> None:
        """Keep the lines that belong in the log, each once."""
        text = self.path.read_bytes()
        lines = []
        for line, values in _lines(self.path, text):
            if isinstance(values, FileFormatError):
                announce(f"{values}; dropped")
            elif not drop(values) and not self._repeats(values):
                lines.append(line + b"\n")
        complete = b"".join(lines)
        if complete != text:
            # Written beside and renamed, so that a kill at this point does not damage the log.
            with atomic_write(self.path) as partial:
                partial.write_bytes(complete)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a log as objects, in order; null stands for a number that was not finite.

    A last line without its end is left out: the run was killed in it, or is writing it now.
    Raises FileFormatError for a missing file, for any other line that is not a JSON object, and for
    one that was altered.
    """
    found = []
    for _, values in _lines(Path(path), _read(Path(path))):
        if isinstance(values, FileFormatError):
            raise values
        found.append(values)
    return found


def sound_lines(path: str | Path) -> list[dict[str, Any]]:
    """As `read_log`, without the lines that are damaged; each of these is a warning."""
    found = []
    for _, values in _lines(Path(path), _read(Path(path))):
        if isinstance(values, FileFormatError):
            announce(f"{values}; not used")
        else:
            found.append(values)
    return found


def announce(text: str) -> None:
    """A warning of the logger "trajmatch" on something damaged, once a process."""
    if text not in _ANNOUNCED:
        _ANNOUNCED.add(text)
        log.warning("%s", text)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"cannot read the log {path}: {error.strerror}; give the folder of a run"
        ) from error


def _lines(path: Path, text: bytes) -> Iterator[tuple[bytes, dict[str, Any] | FileFormatError]]:
    """Each complete line, and what it holds or why that is not known."""
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        try:
            yield line, _values(line, f"line {number} of {path}")
        except FileFormatError as error:
            yield line, error


def _values(line: bytes, name: str) -> dict[str, Any]:
    try:
        values = parse_json(line)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise FileFormatError(f"{name} is not a JSON object: {line[:40]!r}; delete that line")
    return without_digest(values, name, "restore or delete that line")


def jsonable(value: Any) -> Any:
    """`value` as JSON can hold it: non-finite numbers become None, tensors their numbers, paths
    and anything else that JSON does not know their text."""
    if isinstance(value, Tensor):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return str(value)
