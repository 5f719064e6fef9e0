"""result.json: what a command was asked, what it found, and what that cost."""

from __future__ import annotations

import datetime
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.errors import FileFormatError
from trajmatch.runtime.memory import resident_peak
from trajmatch.storage.files import read_json, write_json
from trajmatch.storage.jsonl import jsonable

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
) -> dict[str, Any]:
    """Write `out`/result.json atomically and return what was written.

    `scores` are records `{method, model, ipc, n, mean, sd, protocol, ...}`, `data` a data set's
    summary with its fingerprint, `seconds` how long the command ran; `extra` adds entries of the
    command's own beside the common ones. Non-finite numbers are written as null.
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
        "threads": torch.get_num_threads(),
        **peak_memory(),
    }
    if twice := set(result) & set(extra or {}):
        raise ValueError(f"extra entries {sorted(twice)} are written by write_result itself")
    record: dict[str, Any] = jsonable({**result, **(extra or {})})
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", record)
    return record


def read_result(out: str | Path) -> dict[str, Any]:
    """What `write_result` wrote into the folder `out`.

    Raises FileFormatError when it is missing, is not a result, or was written by a newer version.
    """
    path = Path(out) / "result.json"
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist; give the --out folder of a finished command")
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise FileFormatError(f"{path} is not a result of trajmatch; give the --out folder of one")
    if record["format"] > FORMAT:
        raise FileFormatError(
            f"{path} was written by a newer trajmatch (format {record['format']}, this one reads "
            f"up to {FORMAT}); upgrade trajmatch"
        )
    return record


def versions() -> dict[str, str]:
    """Of this package, torch and Python: what a saved file needs to say about its making."""
    from trajmatch._version import __version__

    return {
        "trajmatch": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def peak_memory() -> dict[str, float]:
    """Largest resident memory so far, in MB (10^6 bytes): of this process, of its largest finished
    child process if there was one, and of tensors on the GPU if it was used."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
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
