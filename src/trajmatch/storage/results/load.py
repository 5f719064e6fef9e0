"""Reading result.json: which kind of result it is, and whether this version can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trajmatch.errors import FileFormatError
from trajmatch.storage.files import read_json
from trajmatch.storage.result import FORMAT
from trajmatch.storage.results.fields import Fields
from trajmatch.storage.results.run import EvaluationResult, RunResult
from trajmatch.storage.results.study import StudyResult
from trajmatch.storage.results.tuning import TuningResult


def load_result(folder: str | Path) -> RunResult:
    """The result.json in `folder`, checked; see `result_from_json`.

    Raises FileFormatError when it is missing, damaged, no result, or of a newer version.
    """
    path = Path(folder) / "result.json"
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist; give the --out folder of a finished command")
    return result_from_json(read_json(path), str(path))


def result_from_json(values: Any, file: str = "the result") -> RunResult:
    """What a result.json holds: an EvaluationResult, a StudyResult or a TuningResult where it is
    that of one.

    A result without `format` is of version 1: version 0.1 published abridged ones.

    Raises FileFormatError, beginning with `file`, for a wrong type or range, for an object that is
    no result, and for a newer format.

    Examples:
        >>> result_from_json({"format": 1, "command": "evaluate", "scores": []}).command
        'evaluate'
    """
    found = Fields.of(values, file)
    if not any(found.has(name) for name in ("format", "scores", "cells")):
        raise FileFormatError(
            f"{file} is not a result of trajmatch; give the --out folder of a command"
        )
    version = found.count("format", 1)
    if version is not None and version > FORMAT:
        raise FileFormatError(
            f"{file} was written by a newer trajmatch (format {version}, this one reads up to "
            f"{FORMAT}); upgrade trajmatch"
        )
    if found.has("study"):
        return StudyResult.read(found)
    if found.text("command") == "tune":
        return TuningResult.read(found)
    return (EvaluationResult if found.text("command") == "evaluate" else RunResult).read(found)
