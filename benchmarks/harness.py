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

from benchmarks.machine import ROOT
from trajmatch.storage.files import write_json

RESULTS = ROOT / "benchmarks" / "results"
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
    made.add_argument("--out", type=Path, help=f"JSON to write (benchmarks/results/{name}.json)")
    made.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    made.add_argument("--device", default="cpu", help="cpu or cuda[:i]")
    made.add_argument("--repeats", type=int, default=repeats, help=f"timed pairs ({repeats})")
    made.add_argument("--warmup", type=int, default=2, help="pairs before that (2)")
    made.add_argument("--quick", action="store_true", help="tiny sizes: is no result")
    made.add_argument("--no-memory", action="store_true", help="leave out peaks of memory")
    return made


def begin(args: argparse.Namespace) -> torch.device:
    """Set the threads and give the device, after refusing one that is not there.

    What exists by now is taken out of the garbage collector's sight: a collection before every
    timing would otherwise take longer than the smaller timings.
    """
    gc.collect()
    gc.freeze()
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
        many = values if len(values) > 1 else [*values, *values]
        q1, median, q3 = statistics.quantiles(many, n=4, method="inclusive")
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
        device = torch.device("cuda")
        inputs = torch.cuda.memory_allocated() / MIB
        return Peak(inputs, gpu_peak(work, device, inputs))
    _trim()
    base = _reset_peak()
    work()
    return Peak(base / MIB, (_status("VmHWM") - base) / MIB)


def reserved_mb(device: torch.device) -> float:
    """MB that torch holds of a GPU for live tensors and CUDA graphs; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) / MIB


def gpu_peak(work: Callable[[], object], device: torch.device, before: float) -> float:
    """The most MB that torch holds of a GPU while `work` runs, above `before`.

    What it reserves, not what its tensors take: the memory of a CUDA graph is reserved when it is
    recorded, and a replay allocates nothing. torch reserves 2 to 20 MB at a time.
    """
    reserved_mb(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    return torch.cuda.max_memory_reserved(device) / MIB - before


def _trim() -> None:
    """Give what was freed back to the system, so that the base is what is really in use."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _reset_peak() -> int:
    """Bytes resident now, and the high-water mark put back to them where the system allows."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return _status("VmHWM")  # then the mark stands at what building the inputs reached
    return _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


# -- results -------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def write(
    args: argparse.Namespace, name: str, found: Mapping[str, Any], *, partial: bool = False
) -> None:
    """Write a benchmark's JSON, and say where. A quick run replaces no result: it is written only
    where --out says so.

    partial: what was measured so far, so that a run that is ended early is not lost. It goes to
    --out alone, and says that it is partial.
    """
    if partial:
        if args.out is not None:
            write_json(args.out, {"benchmark": name, "partial": True, **found})
        return
    if args.out is None and args.quick:
        return
    out = args.out or RESULTS / f"{name}.json"
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


def peak_cells(row: Mapping[str, Any]) -> list[str]:
    """Cells for `ours_mb` and `twin_mb`, empty where they were not measured."""
    return [f"{row[key]:,.0f}" if key in row else "" for key in ("ours_mb", "twin_mb")]


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
