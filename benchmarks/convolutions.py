"""Where the time of some work goes: into convolutions, how fast those run, and into what else."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.harness import synchronize
from trajmatch.networks.precision import arithmetic

CONVOLUTIONS = "convolutions"
GENERATED = "generated kernels"
OPERATORS = "C++ operators"
OUTSIDE = "outside operators (Python, autograd)"
# The first group that a word of an operator's name puts it into.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (CONVOLUTIONS, ("conv",)),
    ("norms", ("group_norm", "layer_norm", "batch_norm")),
    ("pooling", ("pool",)),
    ("matrix products", ("mm", "linear", "::dot", "matmul")),
    ("sampling", ("grid_sampler", "affine_grid")),
    (
        "moving data",
        (
            "copy", "cat", "clone", "contiguous", "gather", "index", "slice", "narrow", "split",
            "fill", "zero", "empty", "permute", "transpose", "_to", "::to", "view", "as_strided",
            "select", "flip", "pad", "expand", "reshape", "detach",
        ),
    ),
)  # fmt: skip
ELEMENTWISE = "elementwise and reductions"


@dataclass(frozen=True)
class Shares:
    """Seconds of one run under the profiler, by what they went into."""

    seconds: float
    groups: dict[str, float]
    tflop: float
    """Of the convolutions, in units of 10^12 operations."""

    @property
    def share(self) -> float:
        """Of the time, inside convolutions."""
        return self.groups.get(CONVOLUTIONS, 0.0) / self.seconds

    @property
    def gflops(self) -> float:
        """The rate of the convolutions, in 10^9 operations a second of their own time."""
        inside = self.groups.get(CONVOLUTIONS, 0.0)
        return self.tflop * 1000 / inside if inside else 0.0

    def to_json(self, best: float) -> dict[str, Any]:
        """`best`: the machine's rate in GFLOP/s, to compare with."""
        return {
            "seconds": self.seconds,
            "convolution_share": self.share,
            "tflop": self.tflop,
            "gflops": self.gflops,
            "of_best": self.gflops / best,
            "groups": dict(sorted(self.groups.items(), key=lambda item: -item[1])),
        }


def convolution_flop(work: Callable[[], object]) -> float:
    """Operations (a multiplication and an addition are two) of all convolutions of `work`.

    The work must run eagerly: what a compiled function does inside is not seen.
    """
    with _Counter() as counter:
        work()
    return counter.flop


class _Counter(TorchDispatchMode):
    """Adds up torch's own counts. (Its FlopCounterMode hangs hooks into the graph, which a walk
    that differentiates step by step cannot take.)"""

    flop = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = func._overloadpacket
        if "conv" in str(operator) and operator in flop_registry:
            self.flop += flop_registry[operator](*args, **(kwargs or {}), out_val=result)
        return result


def shares(work: Callable[[], object], flop: float, device: torch.device) -> Shares:
    """Run `work` once under torch's profiler. `flop`: what `convolution_flop` counted for it.

    The profiler costs some microseconds an operator, so for tiny networks the time outside of
    convolutions is overstated.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    synchronize(device)
    profiler = profile(activities=activities)
    with _quiet():
        profiler.start()
    began = time.perf_counter()
    work()
    synchronize(device)
    took = time.perf_counter() - began
    with _quiet():
        profiler.stop()
    groups: dict[str, float] = {}
    for event in profiler.events() or ():
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        group = _group(event)
        if spent and group:
            groups[group] = groups.get(group, 0.0) + spent * 1e-6
    groups[OUTSIDE] = max(0.0, took - sum(groups.values()))
    return Shares(took, groups, flop / 1e12)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler's library says on stderr when it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _group(event: Any) -> str | None:
    """What an event's own time belongs to: all that runs under a convolution is convolution, all
    under an operator of the package that operator."""
    above = event
    while above is not None:
        if above.name.startswith("trajmatch::"):
            return OPERATORS
        if _is_operator(above.name) and "conv" in above.name:
            return CONVOLUTIONS
        above = above.cpu_parent
    name = event.name
    if name.startswith(("cpp_fused", "triton_", "## Call CompiledFxGraph")):
        return GENERATED
    if not _is_operator(name):
        return None
    for group, words in GROUPS:
        if any(word in name for word in words):
            return group
    return ELEMENTWISE


def _is_operator(name: str) -> bool:
    return "::" in name and not name.startswith(("autograd::", "torch::"))


@functools.cache
def best_rate(precision: str, device: torch.device) -> dict[str, float]:
    """The machine's best GFLOP/s with torch: of a product of 1024x1024 matrices and of a 3x3
    convolution from 128 to 128 channels at 16x16 pixels, 32 images, both memory layouts."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(1024, 1024, device=device, dtype=dtype) for _ in range(2))
    images = torch.randn(32, 128, 16, 16, device=device, dtype=dtype)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)
    last = torch.channels_last
    with arithmetic(precision):
        found = {
            "gemm_1024": 2 * 1024**3 / fastest(lambda: a @ b, device),
            "conv_128_16": conv_rate(images, weight, device),
            "conv_128_16_channels_last": conv_rate(
                images.to(memory_format=last), weight.to(memory_format=last), device
            ),
        }
    found = {name: rate / 1e9 for name, rate in found.items()}
    return {**found, "best": max(found.values())}


def conv_rate(
    images: torch.Tensor, weight: torch.Tensor, device: torch.device, least: float = 0.3
) -> float:
    """Operations a second of the fastest of many convolutions, for at least `least` seconds."""
    flop = 2 * images.numel() * weight[0].numel()
    return flop / fastest(lambda: F.conv2d(images, weight, padding=1), device, least)


def fastest(work: Callable[[], object], device: torch.device, least: float = 0.3) -> float:
    """Seconds of the fastest of many calls, for at least `least` seconds and five calls."""
    with torch.no_grad():
        times: list[float] = []
        while len(times) < 5 or sum(times) < least:
            synchronize(device)
            began = time.perf_counter()
            work()
            synchronize(device)
            times.append(time.perf_counter() - began)
    return min(times)
