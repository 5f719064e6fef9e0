"""What a number is worth nothing without: the machine, its abilities, and how busy it was."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch._version import __version__

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
"""What of a CPU's abilities decides how fast convolutions run."""


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, threads, versions, and the load before anything was run."""
    info = _lines("/proc/cpuinfo")
    found = set(info.get("flags", "").split())
    said = {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in FLAGS if flag in found],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gb": round(_memory_bytes() / 2**30, 1),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "device": str(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "trajmatch": __version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        said["gpu"] = torch.cuda.get_device_name(device)
        said["cuda"] = torch.version.cuda
        # torch's own settings, which hold for the twin: it rounds convolutions to TF32 by default.
        said["tf32_convolutions"] = torch.backends.cudnn.allow_tf32
        said["tf32_products"] = torch.backends.cuda.matmul.allow_tf32
    return said


def words(said: Mapping[str, Any]) -> str:
    """One line about what `describe` found."""
    where = said.get("gpu") or f"{said['cpu']} ({', '.join(said['flags']) or 'no vector flags'})"
    threads = f"{said['threads']} thread{'s' if said['threads'] != 1 else ''}"
    return (
        f"{where}, {said['cores']} cores, {said['memory_gb']:g} GB; {threads}; torch "
        f"{said['torch']}; load {said['load_before']:g} at the start; commit {said['commit']}, "
        f"{said['date']}"
    )


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 products are done by hardware here; emulated ones are many times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = _lines("/proc/cpuinfo").get("flags", "").split()
    return "avx512_bf16" in found or "amx_bf16" in found


def precisions(asked: Sequence[str] | None, device: torch.device) -> tuple[str, ...]:
    """The precisions to measure: those asked for, or those the hardware has."""
    if asked:
        return tuple(asked)
    return ("float32", "bf16") if native_bf16(device) else ("float32",)


def free_bytes() -> int:
    """Memory that can still be used, as the system tells."""
    return int(_lines("/proc/meminfo").get("MemAvailable", "0 kB").split()[0]) * 1024


def _memory_bytes() -> int:
    return int(_lines("/proc/meminfo").get("MemTotal", "0 kB").split()[0]) * 1024


def _lines(path: str) -> dict[str, str]:
    """The `name : value` lines of a file of the kernel, each name once."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return {}
    parts = (line.partition(":") for line in reversed(text.splitlines()))
    return {name.strip(): value.strip() for name, _, value in parts}


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=7"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
