"""result.json: the settings of a command, its results, and its cost in time and memory.

`trajmatch.storage.results` reads it into typed values.
"""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import FileFormatError
from trajmatch.runtime.memory import resident_peak
from trajmatch.storage.files import read_json, write_json
from trajmatch.storage.jsonl import jsonable

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

FORMAT = 1
"""Version of result.json; a reader refuses a newer one."""


def write_result(
    out: str | Path,
    *,
    command: str,
    settings: Mapping[str, Any],
    seed: int,
    scores: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any] | None,
    seconds: float,
    extra: Mapping[str, Any] | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, Any]:
    """Write `out`/result.json atomically and return what was written.

    scores: as `Score.to_json` gives them.
    data: a data set's summary with its fingerprint.
    seconds: the time that the command took.
    threads: those it computed with; None: torch's number.
    extra: entries of this command alone, beside those that all commands have.

    Non-finite numbers are written as null. Raises ValueError for an extra entry under the name of
    a common one.
    """
    now = datetime.datetime.now(datetime.UTC)
    result: dict[str, Any] = {
        "format": FORMAT,
        "command": command,
        "settings": settings,
        "seed": seed,
        "versions": versions(),
        "data": data,
        "scores": scores,
        "started": (now - datetime.timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "device": _device_name(device),
        "threads": threads or torch.get_num_threads(),
        **peak_memory(),
    }
    if twice := set(result) & set(extra or {}):
        raise ValueError(f"extra entries {sorted(twice)} are written by write_result itself")
    written: dict[str, Any] = jsonable({**result, **(extra or {})})
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", written)
    return written


def read_result(out: str | Path) -> dict[str, Any]:
    """The result.json in the folder `out` as plain values, unchecked but for its format.

    Raises FileFormatError when it is missing, is not a result, or was written by a newer version.
    """
    path = Path(out) / "result.json"
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist; give the --out folder of a finished command")
    result = read_json(path)
    if not isinstance(result, dict) or not isinstance(result.get("format"), int):
        raise FileFormatError(f"{path} is not a result of trajmatch; give the --out folder of one")
    if result["format"] > FORMAT:
        raise FileFormatError(
            f"{path} was written by a newer trajmatch (format {result['format']}, this one reads "
            f"up to {FORMAT}); upgrade trajmatch"
        )
    return result


def versions() -> dict[str, str]:
    """Of this package, torch and Python, for files that record how they were made."""
    from trajmatch._version import __version__

    return {
        "trajmatch": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def peak_memory() -> dict[str, float]:
    """Peak memory so far, in MB (10^6 bytes): resident memory of this process and of its largest
    finished child process (if any), and tensors on the GPU (if it was used)."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit if resource else 0
    peak = {"peak_memory_mb": round(resident_peak() / 1e6, 1)}
    if child:
        peak["peak_memory_child_mb"] = round(child / 1e6, 1)
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        peak["peak_memory_cuda_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peak


def _device_name(device: str) -> str:
    """`cuda:0 (NVIDIA H100)`, or just `cpu`."""
    if not device.startswith("cuda"):
        return device
    return f"{device} ({torch.cuda.get_device_name(device)})"
