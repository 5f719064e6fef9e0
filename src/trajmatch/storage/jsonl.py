"""The log of a run: one JSON object a line, readable while the run goes on.

`trajmatch.storage.results.load_log` reads it into typed lines.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trajmatch.errors import FileFormatError
from trajmatch.storage.files import atomic_write


class JsonlTracker:
    """Writes `{"time", "step", ...}` per `log` and `{"time", "event", ...}` per `event`.

    Each line reaches the operating system before the call returns, so a killed run loses nothing
    but the line it was writing. JSON has no NaN: non-finite numbers are written as null.
    """

    def __init__(self, path: str | Path, append: bool = True, until: int | None = None) -> None:
        """Open `path`, continuing it when `append` and emptying it otherwise.

        Continuing drops a last line that a kill tore off, and, when `until` is given, the lines of
        later steps: a run resumed from the checkpoint of step `until` logs those again.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if append and self.path.exists():
            _mend(self.path, until)
        self._file = self.path.open("a" if append else "w", buffering=1, encoding="utf-8")

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._write({"step": step, **values})

    def event(self, name: str, **values: Any) -> None:
        self._write({"event": name, **values})

    def close(self) -> None:
        self._file.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(jsonable({"time": round(time.time(), 3), **values}), ensure_ascii=False)
        self._file.write(line + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a log as objects, in order; null stands for a number that was not finite.

    A last line without its end is left out: the run was killed in it, or is writing it now.
    Raises FileFormatError for a missing file and for any other line that is not a JSON object.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"cannot read the log {path}: {error.strerror}; give the folder of a run"
        ) from error
    found = []
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise FileFormatError(
                f"line {number} of {path} is not a JSON object: {line[:40]!r}; delete that line"
            )
        found.append(values)
    return found


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


def _mend(path: Path, until: int | None) -> None:
    """Cut a torn last line; drop the lines of steps after `until`."""
    text = path.read_bytes()
    complete = text[: text.rfind(b"\n") + 1]
    if until is not None:
        logged = read_log(path)
        lines = complete.splitlines(keepends=True)
        complete = b"".join(
            line
            for line, values in zip(lines, logged, strict=True)
            if values.get("step", until) <= until
        )
    if complete == text:
        return
    # Written beside and renamed, so that a kill at this point does not damage the log.
    with atomic_write(path) as partial:
        partial.write_bytes(complete)
