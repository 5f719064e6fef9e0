"""A small network that is trained for a short time before anything is planned: what a training step
costs on this machine, when accuracy stops rising, and whether a mirrored image is still one of its
class."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping

import torch

from trajmatch.config import ExpertConfig, NetworkConfig, Precision
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import fit_whitening
from trajmatch.experts.train import expert_accuracy, expert_epochs
from trajmatch.networks import NetworkSpec
from trajmatch.networks.spec import network_for
from trajmatch.runtime.compiling import forward_flop
from trajmatch.runtime.processor import computes_bf16
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import limited_threads
from trajmatch.types import Float, Int, Tensor

WIDTHS = (128, 64, 32)
"""Of the ConvNets that are timed; the last one is trained."""
BF16_WIDTH = 64
"""From here on convolutions are computed in bfloat16 where the processor does that."""
LOAD = 4e9
"""Operations of a forward pass from which a step's time says what one operation takes."""
STEPS = 20
"""Steps between two looks at the clock and at the validation images."""
MOST_STEPS = 1200
TIMES = 4
WITHOUT_FLIP = "color_crop_cutout_scale_rotate"
MIRRORED = 0.85
"""Mirroring is left out where mirrored images are recognized less than so well, above chance."""


@dataclasses.dataclass(frozen=True)
class Pilot:
    """What was measured. Times are of one thread."""

    call_seconds: float
    """Of a training step, whatever it computes."""
    flop_seconds: Mapping[int, float]
    """Of one floating-point operation of the convolutions and matrix products, by the ConvNet's
    width; not compiled."""
    bf16: bool
    """Whether bfloat16 is computed by instructions of its own; wide networks were timed with it."""
    accuracies: tuple[float, ...]
    """Percent of the validation images after every `STEPS` steps."""
    mirrored: float
    """Percent of the same images, mirrored, at the end."""
    chance: float
    """Percent that guessing one class for all images reaches."""

    def step_seconds(self, width: int, flop: int) -> float:
        """Of a training step of a ConvNet whose forward pass takes so many operations."""
        nearest = min(self.flop_seconds, key=lambda known: abs(math.log(known / width)))
        return self.call_seconds + self.flop_seconds[nearest] * 3 * flop

    def precision(self, width: int) -> Precision:
        """Of experts and distillation with a ConvNet of that width, and as it was timed."""
        return precision_of(width, bf16=self.bf16)

    @property
    def flip(self) -> bool:
        """Whether mirrored images are recognized nearly as well, by a network that saw none."""
        gained = self.accuracies[-1] - self.chance
        return self.mirrored - self.chance >= MIRRORED * gained or gained <= 0

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return STEPS * len(self.accuracies)

    def enough(self, share: float) -> int:
        """Steps after which accuracy was that share of what it came to at most, above chance."""
        best = max(self.accuracies)
        limit = min(best, self.chance + share * (best - self.chance))
        return STEPS * next(n for n, one in enumerate(self.accuracies, 1) if one >= limit)


def precision_of(width: int, *, bf16: bool) -> Precision:
    """bf16 for a wide ConvNet where the processor computes it."""
    return "bf16" if bf16 and width >= BF16_WIDTH else "float32"


def train_pilot(
    data: ImageDataset, *, batch: int, lr: float, seconds: float, seed: int, resources: Resources
) -> Pilot:
    """Train for about `seconds`, at least `2 * STEPS` steps and at most `MOST_STEPS`.

    Memory: the whitened training and validation images.

    Examples:
        >>> train_pilot(data, batch=32, lr=0.01, seconds=10, seed=0, ...)  # doctest: +SKIP
    """
    assert data.val is not None
    spec = network_for(data, NetworkConfig(width=WIDTHS[-1]))
    whitening, device = fit_whitening("normalize", data.train), resources.torch_device
    train, val = (whitening.apply_split(split, device) for split in (data.train, data.val))
    labels, targets = data.train.labels.to(device), data.val.labels.to(device)
    with limited_threads(1):
        call = _step_seconds(spec, train[:1], labels[:1], "float32")
        bf16 = computes_bf16(device)
        rates = {width: _flop_seconds(data, width, train, labels, call, bf16) for width in WIDTHS}
        config = _config(batch, lr, epochs=MOST_STEPS // STEPS)
        began, accuracies, vector = time.perf_counter(), list[float](), None
        for state in expert_epochs(spec, train, labels, config, seed=seed, index=0):
            vector = state.vector
            accuracies.append(expert_accuracy(spec, vector, val, targets))
            if len(accuracies) >= 2 and time.perf_counter() - began > seconds:
                break
        assert vector is not None
        mirrored = expert_accuracy(spec, vector, val.flip(3), targets)
    counts = torch.bincount(data.val.labels, minlength=data.num_classes)
    return Pilot(
        call_seconds=call,
        flop_seconds=rates,
        bf16=bf16,
        accuracies=tuple(accuracies),
        mirrored=mirrored,
        chance=100 * float(counts.max()) / len(data.val),
    )


def _config(batch: int, lr: float, *, epochs: int) -> ExpertConfig:
    return ExpertConfig(
        experts=1,
        epochs=epochs,
        batch=batch,
        steps_per_epoch=STEPS,
        lr=lr,
        augment=WITHOUT_FLIP,
        compile="no",
    )


def _flop_seconds(
    data: ImageDataset,
    width: int,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    call: float,
    bf16: bool,
) -> float:
    """Seconds of an operation, from a step of so many images that operations take most of it."""
    spec = network_for(data, NetworkConfig(width=width))
    flop = forward_flop(spec.build(seed=0), tuple(images.shape[1:]))
    batch = min(len(images), max(4, math.ceil(LOAD / flop)))
    precision = precision_of(width, bf16=bf16)
    seconds = _step_seconds(spec, images[:batch], labels[:batch], precision)
    return max(seconds - call, seconds / 10) / (3 * flop * batch)


def _step_seconds(
    spec: NetworkSpec,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    precision: Precision,
) -> float:
    """Seconds of a training step on all of the images, the fastest of `TIMES`."""
    fastest, before = math.inf, time.perf_counter()
    config = dataclasses.replace(
        _config(len(images), 1e-3, epochs=1 + TIMES), steps_per_epoch=1, precision=precision
    )
    for epoch, _ in enumerate(expert_epochs(spec, images, labels, config, seed=0, index=0)):
        now = time.perf_counter()
        if epoch:  # the first one warms up
            fastest = min(fastest, now - before)
        before = now
    return fastest
