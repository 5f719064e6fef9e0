"""The walk that is measured: its sizes and inputs, our way through it and the twin's, and the check
that both compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks import twin
from trajmatch.data.augment import CHANGES, Augmentation
from trajmatch.networks import NetworkSpec, parameter_vector
from trajmatch.rng import stream
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.types import Tensor
from trajmatch.unroll import EXACT, Schedule, SegmentDistance, Student, UnrolledGradient, plan
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.unroll import unroll

STEP_SIZE = 0.01
PUBLISHED = Augmentation()
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """The sizes of one walk."""

    name: str
    images: int
    channels: int
    size: int
    depth: int
    width: int
    steps: int
    batch_syn: int | None = None
    """Images per step; None: all."""

    @property
    def spec(self) -> NetworkSpec:
        options = {"depth": self.depth, "width": self.width}
        return NetworkSpec("convnet", self.channels, CLASSES, self.size, options)

    def words(self) -> str:
        shape = f"{self.size}x{self.size}x{self.channels}"
        batch = f", batch {self.batch_syn}" if self.batch_syn else ""
        network = f"D{self.depth} width {self.width}"
        return f"N {self.steps}, {self.images} images {shape}, {network}{batch}"

    def schedule(self, images: Tensor, number: int, dsa: Augmentation | None) -> Schedule:
        """The draws of iteration `number`; those of batches do not depend on `dsa`."""
        return Schedule.make(
            images,
            steps=self.steps,
            batch_syn=self.batch_syn,
            augment=dsa,
            seed=number,
            names=("benchmark",),
        )


CASES = {
    "iteration": Case("iteration", 10, 3, 32, depth=3, width=128, steps=20),
    "digits": Case("digits", 10, 1, 8, depth=2, width=32, steps=20),
}
# The recipes cifar10-ipc1 and, with the batches that larger sets need, cifar10-ipc10: for a GPU.
PUBLISHED_SIZES = {
    "ipc1": Case("ipc1", 10, 3, 32, depth=3, width=128, steps=50),
    "ipc10": Case("ipc10", 100, 3, 32, depth=3, width=128, steps=30, batch_syn=50),
}
LONG = Case("long", 100, 3, 32, depth=3, width=128, steps=50)
SMALL = Case("small", 4, 3, 8, depth=2, width=4, steps=3)


@dataclass(frozen=True)
class Inputs:
    """Where a walk starts, where it should go, and what it walks on: drawn from one seed."""

    start: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    step_size: Tensor

    @staticmethod
    def draw(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> Inputs:
        start = parameter_vector(case.spec.build(seed=0)).to(dtype)
        drawn = stream(0, "benchmark", "inputs")
        target = start + 0.01 * torch.randn(start.shape, generator=drawn, dtype=dtype)
        shape = (case.images, case.channels, case.size, case.size)
        images = torch.randn(shape, generator=drawn, dtype=dtype)
        labels = torch.arange(case.images) % CLASSES
        step_size = torch.tensor(STEP_SIZE, dtype=dtype)
        return Inputs(*(t.to(device) for t in (start, target, images, labels, step_size)))


Iteration = Callable[[int], UnrolledGradient]


def ours(
    case: Case,
    inputs: Inputs,
    *,
    method: str,
    precision: str = "float32",
    compile: bool = False,
    dsa: Augmentation = PUBLISHED,
) -> tuple[Iteration, str]:
    """Our iteration, as distillation/matching.py puts it together, and what the method decided."""
    device = inputs.images.device
    module = case.spec.build(seed=0).to(inputs.start)
    micro_batch = micro_batch_size(module, (case.channels, case.size, case.size), device)

    found = gradient_fn(module, precision=precision, compile=compile)

    def student(number: int) -> Student:
        schedule = case.schedule(inputs.images, number, dsa)
        return Student(found, inputs.images, inputs.labels, dsa, schedule, micro_batch)

    # Decided once a run, so not part of an iteration.
    decided = plan(student(0), inputs.start, method)

    def iteration(number: int) -> UnrolledGradient:
        outer_loss = SegmentDistance(inputs.start, inputs.target)
        walker = student(number)
        return unroll(walker, inputs.start, inputs.step_size, outer_loss, keep=decided.keep)

    return iteration, decided.reason


def theirs(
    case: Case, inputs: Inputs, dsa: Augmentation = PUBLISHED
) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """The twin's iteration, with our draws."""
    module = twin.TwinConvNet(case.channels, CLASSES, case.size, case.depth, case.width)
    module.to(inputs.start)

    def iteration(number: int) -> tuple[Tensor, Tensor, Tensor]:
        drawn = stream(number, "benchmark", "augment")
        batch = case.batch_syn or case.images
        return twin.unrolled(
            module,
            inputs.start,
            inputs.target,
            inputs.images,
            inputs.labels,
            inputs.step_size,
            case.steps,
            lambda: dsa.draw(drawn, batch, case.size, case.size),
            dsa,
            case.schedule(inputs.images, number, None).indices,
        )

    return iteration


def agreement(case: Case = SMALL) -> dict[str, float]:
    """Largest relative difference of loss and gradients to the twin's, in float64, over all six
    changes and the methods, on whole sets and in batches. Raises RuntimeError when it is not
    rounding."""
    inputs = Inputs.draw(case, torch.device("cpu"), torch.float64)
    worst = {"loss": 0.0, "images": 0.0, "step_size": 0.0}
    for change in CHANGES:
        dsa = Augmentation(change)
        for each in (case, replace(case, batch_syn=case.images - 1)):
            wanted = theirs(each, inputs, dsa)(1)
            for method in EXACT:
                found = ours(each, inputs, method=method, dsa=dsa)[0](1)
                got = (found.loss, found.grad_images, found.grad_step_size)
                for name, a, b in zip(worst, got, wanted, strict=True):
                    worst[name] = max(worst[name], apart(a, b))
    if max(worst.values()) > 1e-9:
        raise RuntimeError(f"ours and the twin do not compute the same, nothing is timed: {worst}")
    return worst


def apart(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, in float64."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two gradients, in float64."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))
