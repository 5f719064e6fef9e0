"""How everything here is measured: pairs in alternation, peaks in processes of their own.

A timing compares two contenders that do the same work in turns (A B A B ...), so that whatever
slows the machine slows both, and reports the ratio of each pair before its median. A peak of
memory is taken in a fresh process: the high-water mark of the work above what the process held
once its imports were done and its inputs built.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trajmatch import __version__
from trajmatch.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16")
"""What of a CPU's abilities decides how fast convolutions run."""
MIB = 2**20

Work = Callable[[int], object]
"""One unit of a contender's work; the number names the pair, and with it every draw."""


# -- command line --------------------------------------------------------------------------------


def parser(name: str, about: str | None, *, repeats: int = 7) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="JSON to write")
    made.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    made.add_argument("--device", default="cpu", help="cpu or cuda[:i]")
    made.add_argument("--repeats", type=int, default=repeats, help=f"timed pairs ({repeats})")
    made.add_argument("--warmup", type=int, default=2, help="pairs before that (2)")
    made.add_argument("--quick", action="store_true", help="tiny sizes: checks that it runs")
    made.add_argument("--no-memory", action="store_true", help="leave out peaks of memory")
    return made


def begin(args: argparse.Namespace) -> torch.device:
    """Set the threads and give the device, after refusing one that is not there."""
    if args.repeats < 1 or args.warmup < 1:
        raise SystemExit("--repeats and --warmup must be at least 1")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; use --device cpu")
    return device


def say(line: str) -> None:
    """Progress, beside the tables: on stderr."""
    print(line, file=sys.stderr, flush=True)


# -- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A handful of numbers: their median and how far they lie apart."""

    median: float
    q1: float
    q3: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        q1, median, q3 = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else values * 3
        )
        return Spread(median, q1, q3, min(values), max(values))


@dataclass
class Pairs:
    """Seconds of two contenders, taken in turns on the same work."""

    ours: list[float] = field(default_factory=list)
    twin: list[float] = field(default_factory=list)
    first_ours: float | None = None
    """The very first call: compilation, primitives and caches included."""
    first_twin: float | None = None

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.twin, strict=True)]

    def add(self, ours: float, twin: float, *, warm: bool) -> None:
        """Take one pair in; while it is not `warm`, only as the first call."""
        if warm:
            self.ours.append(ours)
            self.twin.append(twin)
        elif self.first_ours is None:
            self.first_ours, self.first_twin = ours, twin

    def to_json(self) -> dict[str, Any]:
        """Spreads of the seconds and of the ratio per pair; every second that was measured."""
        return {
            "pairs": len(self.ours),
            "ours_s": vars(Spread.of(self.ours)),
            "twin_s": vars(Spread.of(self.twin)),
            "ratio": vars(Spread.of(self.ratios)),
            "first_ours_s": self.first_ours,
            "first_twin_s": self.first_twin,
            "all_ours_s": self.ours,
            "all_twin_s": self.twin,
        }


def alternate(
    ours: Work,
    twin: Work,
    *,
    repeats: int,
    warmup: int,
    device: torch.device,
    least: float = 0.0,
) -> Pairs:
    """Time `ours` and `twin` in turns; the first `warmup` pairs are run and not counted.

    Short work is repeated beyond `repeats`, up to ten times as often, until it took `least` seconds
    in all.
    """
    pairs = Pairs()
    for number in range(warmup + 10 * repeats):
        took = seconds(ours, number, device), seconds(twin, number, device)
        pairs.add(*took, warm=number >= warmup)
        if len(pairs.ours) >= repeats and sum(pairs.ours) + sum(pairs.twin) >= least:
            break
    return pairs


def seconds(work: Work, number: int, device: torch.device) -> float:
    """Wall time of one call."""
    began = now(device)
    work(number)
    synchronize(device)
    return time.perf_counter() - began


def now(device: torch.device) -> float:
    """The clock, once the garbage of whoever ran before is collected and the device is idle."""
    synchronize(device)
    gc.collect()
    return time.perf_counter()


def synchronize(device: torch.device) -> None:
    """Wait until everything given to a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak:
    """Memory of one piece of work in MB (2^20 bytes): before it, and its highest above that."""

    base_mb: float
    above_mb: float


def peak_of(target: str, *, threads: int = 1, **values: Any) -> Peak:
    """The peak of a piece of work, measured in a process of its own.

    `target` is "module:function"; the function is called there with `values` (plain JSON), builds
    its inputs, and gives back the work: a function of no arguments.
    """
    command = [sys.executable, "-m", "benchmarks.harness", target, str(threads), json.dumps(values)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{target} failed in its own process:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Peak(found["base_mb"], found["above_mb"])


def _measure_here(target: str, threads: int, values: dict[str, Any]) -> Peak:
    """Run in the process of `peak_of`."""
    torch.set_num_threads(threads)
    module, _, function = target.partition(":")
    work = getattr(importlib.import_module(module), function)(**values)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return Peak(held / MIB, (torch.cuda.max_memory_allocated() - held) / MIB)
    _trim()
    base = _reset_peak()
    work()
    return Peak(base / MIB, (_status("VmHWM") - base) / MIB)


def _trim() -> None:
    """Give what was freed back to the system, so that the base is what is really in use."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _reset_peak() -> int:
    """Bytes resident now, and the high-water mark put back to them where the system allows."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")  # then the mark stands at what building the inputs reached
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# -- machine -------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """What a number is worth nothing without: hardware, threads, versions, how busy it was."""
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
    return said


def machine_words(said: Mapping[str, Any]) -> str:
    """One line about `machine`."""
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
        return torch.cuda.is_bf16_supported(including_emulation=False)
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
        text = Path(path).read_text()
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


# -- results -------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def write(out: Path, name: str, found: Mapping[str, Any]) -> None:
    """Write a benchmark's JSON, and say where."""
    write_json(out, {"benchmark": name, **found})
    say(f"written: {out}")


def ms(value: float) -> str:
    """Seconds as milliseconds or seconds, to three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def timing_cells(pairs: Mapping[str, Any]) -> list[str]:
    """Cells of a table for `Pairs.to_json`: ours, twin, ratio with quartiles, first call."""
    ratio = pairs["ratio"]
    return [
        ms(pairs["ours_s"]["median"]),
        ms(pairs["twin_s"]["median"]),
        f"{ratio['median']:.3f}",
        f"{ratio['q1']:.3f}-{ratio['q3']:.3f}",
        str(pairs["pairs"]),
        ms(pairs["first_ours_s"]),
    ]


TIMING_HEAD = ("work", "ours", "twin", "ratio", "quartiles", "pairs", "first call")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors and modules in `dtype`, for checks in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    found = _measure_here(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
    print(json.dumps(vars(found)))
