"""How near the machine's limit the ConvNet's work is: its time over that of its convolutions.

Each piece of work is done in turns by the C++ operators, through torch.compile (what there was
before them), and by a probe: torch's convolution of 32 images from 128 to 128 channels at 16x16,
the fastest that was found. `limit` is the work's time over its convolutions' operations at the
probe's rate just then; `before` is over the compiled form; `twin`, of the first work, over the
plain twin, which computes in float32.

    python -m benchmarks.limit                       # ten minutes
    python -m benchmarks.limit --works iteration --precision bf16
    python -m benchmarks.limit --threads 2           # how much two threads save: compare the times
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from benchmarks import convolutions, harness, machine
from benchmarks.walks import CASES, PUBLISHED_SIZES, Case, Inputs, ours, theirs
from trajmatch.config import ExpertConfig
from trajmatch.data.augment import Augmentation
from trajmatch.evaluation.train import TrainingSettings, train_network
from trajmatch.experts.train import expert_epochs
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.processor import processor_kind
from trajmatch.unroll import native
from trajmatch.unroll.convnet import ConvNetGradient


@dataclass(frozen=True)
class Sizes:
    """Of the network, and of how much of an expert's epoch and of an evaluation is done: all their
    steps are alike."""

    size: int = 32
    width: int = 128
    batch: int = 256
    steps: int = 4
    networks: int = 5
    epochs: int = 100

    @property
    def spec(self) -> NetworkSpec:
        return NetworkSpec("convnet", 3, 10, self.size, {"depth": 3, "width": self.width})

    def images(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random images with the classes 0, 1, 2 ... in turn."""
        drawn = torch.Generator().manual_seed(0)
        shape = (count, 3, self.size, self.size)
        return torch.randn(shape, generator=drawn), torch.arange(count) % 10


FULL = Sizes()
TINY = Sizes(size=8, width=32, batch=8, steps=2, networks=2, epochs=3)


@dataclass(frozen=True)
class Job:
    """One piece of work in two forms, and what it computes."""

    flop: float
    """Of its convolutions."""
    images: int
    """That go through a convolution at a time."""
    operators: Callable[[int], object]
    compiled: Callable[[int], object]
    twin: Callable[[int], object] | None = None


@contextlib.contextmanager
def _without_operators() -> Iterator[None]:
    with mock.patch.object(native, "available", return_value=False):
        yield


def unroll_job(case: Case, precision: str, sizes: Sizes) -> Job:
    """One iteration, method auto."""
    case = replace(case, size=sizes.size, width=sizes.width)
    inputs = Inputs.draw(case, torch.device("cpu"))

    def form(compile: bool = True, precision: str = precision) -> Callable[[int], object]:
        return ours(case, inputs, method="auto", precision=precision, compile=compile)[0]

    with _without_operators():
        compiled = form()
    flop = convolutions.convolution_flop(lambda: form(compile=False, precision="float32")(0))
    images = case.batch_syn or case.images
    twin = None if case.batch_syn else theirs(case, inputs)  # of a larger one it takes minutes
    return Job(flop, images, form(), compiled, twin)


def expert_job(precision: Any, sizes: Sizes) -> Job:
    """Some steps of an expert."""
    images, labels = sizes.images(sizes.batch * sizes.steps)

    def train(compile: Any) -> None:
        config = ExpertConfig(
            epochs=1,
            batch=sizes.batch,
            steps_per_epoch=sizes.steps,
            precision=precision,
            compile=compile,
        )
        for _ in expert_epochs(sizes.spec, images, labels, config, seed=0, index=0):
            pass

    def before(number: int) -> None:
        with _without_operators():
            train("yes")

    flop = convolutions.convolution_flop(lambda: train("no"))
    return Job(flop, min(sizes.batch, 16), lambda number: train("yes"), before)


def evaluation_job(precision: Any, sizes: Sizes) -> Job:
    """Fresh networks on ten images. The compiled form is in float32, which it was before."""
    images, labels = sizes.images(10)

    def train(precision: Any, compile: bool, epochs: int = sizes.epochs) -> None:
        settings = TrainingSettings(0.01, epochs, augment=Augmentation(), precision=precision)
        for seed in range(sizes.networks):
            module = sizes.spec.build(seed=seed)
            train_network(module, images, labels, settings, seed=seed, compile=compile)

    def before(number: int) -> None:
        with _without_operators():
            train("float32", True)

    flop = sizes.epochs * convolutions.convolution_flop(lambda: train("float32", False, epochs=1))
    return Job(flop, 10, lambda number: train(precision, True), before)


WORKS: dict[str, Callable[[str, Sizes], Job]] = {
    "iteration": functools.partial(unroll_job, CASES["iteration"]),
    "ipc10": functools.partial(unroll_job, PUBLISHED_SIZES["ipc10"]),
    "expert": expert_job,
    "evaluation": evaluation_job,
}
WORDS = {
    "iteration": "iteration, N 20, 10 images",
    "ipc10": "iteration, N 30, 50 of 100 images a step",
    "expert": f"expert, {FULL.steps} steps of {FULL.batch} images",
    "evaluation": f"{FULL.networks} fresh networks, {FULL.epochs} epochs of 10 images",
}


class Probe:
    """The fastest of some calls of one convolution, in operations a second."""

    def __init__(self, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        last = torch.channels_last
        self.images = torch.randn(32, 128, 16, 16, dtype=dtype).to(memory_format=last)
        self.filters = torch.randn(128, 128, 3, 3, dtype=dtype).to(memory_format=last)

    def rate(self) -> float:
        device = torch.device("cpu")
        return convolutions.conv_rate(self.images, self.filters, device, least=0.15)


def row(work: str, precision: str, args: Any) -> dict[str, Any]:
    """One piece of work, measured."""
    torch._dynamo.reset()
    sizes = TINY if args.quick else FULL
    job, device, probe = WORKS[work](precision, sizes), torch.device("cpu"), Probe(precision)
    for _ in range(args.warmup):
        job.operators(0)
        job.compiled(0)
    times: dict[str, list[float]] = {"operators": [], "compiled": [], "twin": []}
    rates = []
    for number in range(args.repeats):
        times["operators"].append(harness.seconds(job.operators, number, device))
        rates.append(probe.rate())
        times["compiled"].append(harness.seconds(job.compiled, number, device))
        if job.twin is not None:
            times["twin"].append(harness.seconds(job.twin, number, device))

    def over(other: str) -> dict[str, float] | None:
        if not times[other]:
            return None
        pairs = zip(times["operators"], times[other], strict=True)
        return vars(harness.Spread.of([a / b for a, b in pairs]))

    limits = [t * rate / job.flop for t, rate in zip(times["operators"], rates, strict=True)]
    return {
        "work": work,
        "precision": precision,
        "pairs": len(rates),
        "tflop": job.flop / 1e12,
        "operators_s": vars(harness.Spread.of(times["operators"])),
        "compiled_s": vars(harness.Spread.of(times["compiled"])),
        "probe_gflops": vars(harness.Spread.of([rate / 1e9 for rate in rates])),
        "limit": vars(harness.Spread.of(limits)),
        "before": over("compiled"),
        "twin": over("twin"),
        "processor": processor_kind(),
        "kernels": kernels(sizes, job.images, precision),
    }


def kernels(sizes: Sizes, batch: int, precision: str) -> str:
    """Which convolutions are torch's own, in words."""
    rounded = torch.bfloat16 if precision == "bf16" else None
    derived = ConvNetGradient.of(sizes.spec.build(seed=0), rounded)
    assert derived is not None
    net = native.NativeConvNet.of(derived, torch.empty(0))
    if net is None:
        return "compiled"
    named = {0: "convolution", 1: "gradient at images", 2: "gradient at filters"}
    own = [
        f"{named[n % 3]} of block {n // 3 + 1}"
        for n in net.library((batch, 3, sizes.size, sizes.size))
    ]
    return f"tiles, but torch's {', '.join(own)}" if own else "tiles"


def spread(found: dict[str, float] | None) -> str:
    """Median and quartiles."""
    if found is None:
        return ""
    return f"{found['median']:.3f} ({found['q1']:.3f}-{found['q3']:.3f})"


HEAD = ["work", "n", "time", "limit", "before", "twin", "probe GFLOP/s", "kernels"]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    return [
        f"{WORDS[row['work']]}, {row['precision']}",
        str(row["pairs"]),
        harness.ms(row["operators_s"]["median"]),
        *(spread(row[name]) for name in ("limit", "before", "twin")),
        f"{row['probe_gflops']['median']:.0f}",
        row["kernels"],
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    made = harness.parser("limit", __doc__)
    made.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    made.add_argument("--precision", nargs="+", choices=("float32", "bf16"))
    args = made.parse_args(argv)
    device = harness.begin(args)
    found: dict[str, Any] = {"machine": machine.describe(device), "quick": args.quick, "rows": []}
    for precision in machine.precisions(args.precision, device):
        for work in args.works:
            harness.say(f"{work} {precision}")
            found["rows"].append(row(work, precision, args))
    print(
        machine.words(found["machine"]),
        harness.table(HEAD, [cells(row) for row in found["rows"]]),
        sep="\n",
    )
    harness.write(args, "limit" if args.threads == 1 else f"limit-{args.threads}", found)
    return found


if __name__ == "__main__":
    main()
