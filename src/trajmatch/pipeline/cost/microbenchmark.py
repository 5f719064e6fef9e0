"""One iteration of a method, tried on noise: how long it takes here, and what it holds.

The method itself is built and asked for estimates, with the run's network, settings and shapes. The
images alone are noise, and the compiler is left out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from trajmatch.config import DistillConfig
from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import fit_whitening
from trajmatch.methods import Problem, SyntheticParameters, begin, method_class
from trajmatch.methods.unrolled import UnrolledMethod
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.runtime.memory import available_bytes, peak_bytes
from trajmatch.runtime.threads import limited_threads
from trajmatch.types import Float, Int, Tensor

TRIAL_SECONDS = 2.0
"""How long an iteration that is tried may take, as far as a smaller one tells."""
TIMED_SECONDS = 0.4
"""How long iterations of one size are timed, at least: one of them where it takes longer."""


@dataclass(frozen=True)
class Trial:
    """What one iteration of a run will take."""

    seconds: float
    peak: int
    """Bytes, besides the real images and what is learned."""
    share: float
    """How much of an iteration was tried, at the last."""

    def describe(self, method: str) -> str:
        """`dm's own, timed on noise`."""
        part = "" if self.share == 1 else f", {100 * self.share:.2g} % of one"
        return f"{method}'s own, timed on noise{part}"


class Noise(Problem):
    """A ground of few random images that every class has for its own: each of them costs what a
    real one costs, and they take no memory to speak of."""

    @classmethod
    def like(cls, spec: NetworkSpec, of_class: int, device: torch.device) -> Noise:
        """For a network's images and classes, each class with `of_class` training images."""
        count = max(of_class, spec.classes)
        draw = torch.Generator().manual_seed(0)
        shape = (count, spec.channels, *height_width(spec.size))
        pixels = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
        split = Split(pixels, torch.arange(count) % spec.classes)
        names = tuple(map(str, range(spec.classes)))
        data = ImageDataset("noise", split, split, split, names)
        return cls(data, spec, fit_whitening("normalize", split), device)

    @cached_property
    def members(self) -> list[Int[Tensor, "of_class"]]:
        """All images, for every class."""
        return [torch.arange(len(self.data.train))] * self.spec.classes

    def noise(self, count: int) -> Float[Tensor, "n channels height width"]:
        """Other random images."""
        draw = torch.Generator().manual_seed(1)
        shape = (count, *self.images.shape[1:])
        return torch.randn(shape, generator=draw).to(self.device)


def require_method_fits(spec: NetworkSpec, config: DistillConfig) -> None:
    """Refuse what the method refuses of its settings and the network, before anything starts."""
    if not method_class(config.method).needs_experts:
        begin(Noise.like(spec, 1, torch.device("cpu")), config, seed=0)


def iteration(
    spec: NetworkSpec,
    config: DistillConfig,
    device: torch.device,
    *,
    of_class: int | None = None,
    threads: int | None = None,
) -> Trial:
    """Try one iteration of the method of `config`, one that matches no experts.

    of_class: real images of a class, where it may have fewer than `batch_real`.

    The smallest iteration is tried first: of a walk one step, of other work two classes. Then, as
    long as the method's `work` says that a larger one takes no more than `TRIAL_SECONDS`, the
    largest such. So it takes some seconds in all, or two or three of the smallest iterations where
    these take longer, and less memory than the run will. What was not tried whole is counted by
    the method's `work` and `held`.

    Raises SettingError for what the method refuses.
    """
    maker, sizes = method_class(config.method), list(_sizes(spec, config))
    place = len(sizes) - 1
    while True:
        seconds, peak = _tried(*sizes[place], device, of_class, threads)
        pace = seconds / maker.work(*sizes[place])
        longer = [maker.work(*size) * pace for size in sizes[:place]]
        affordable = [n for n, expected in enumerate(longer) if expected <= TRIAL_SECONDS]
        if not affordable:
            break
        place = affordable[0]
    whole, tried = sizes[0], sizes[place]
    share = maker.work(*tried) / maker.work(*whole)
    held = peak * maker.held(*whole) // maker.held(*tried)
    if issubclass(maker, UnrolledMethod) and config.gradient == "auto":  # keeps what fits
        held = min(held, max(peak, available_bytes(device) // 2))
    return Trial(seconds / share, held, share)


Size = tuple[NetworkSpec, DistillConfig]


def _sizes(spec: NetworkSpec, config: DistillConfig) -> Iterator[Size]:
    """An iteration, then ever smaller ones, each with about half the work of the one before."""
    maker = method_class(config.method)
    size: Size | None = spec, dataclasses.replace(config, compile="no")
    while size is not None:
        yield size
        work = maker.work(*size)
        size = next((less for less in _halves(*size) if maker.work(*less) < work), None)


def _halves(spec: NetworkSpec, config: DistillConfig) -> Iterator[Size]:
    """One with half the steps, the walks, the classes, the real images."""
    steps, window = _half(config.syn_steps), config.window and _half(config.window)
    yield spec, dataclasses.replace(config, syn_steps=steps, window=window)
    yield spec, dataclasses.replace(config, segments=_half(config.segments))
    fewer = dataclasses.replace(spec, classes=max(2, _half(spec.classes)))
    batch = config.batch_syn and min(config.batch_syn, config.ipc * fewer.classes)
    yield fewer, dataclasses.replace(config, batch_syn=batch)
    yield spec, dataclasses.replace(config, batch_real=_half(config.batch_real))


def _half(count: int) -> int:
    return -(-count // 2)


def _tried(
    spec: NetworkSpec,
    config: DistillConfig,
    device: torch.device,
    of_class: int | None,
    threads: int | None,
) -> tuple[float, int]:
    """Seconds of an iteration, the mean of some after the first, which tells its peak of memory."""
    count = min(config.batch_real, of_class or config.batch_real)
    ground = Noise.like(spec, count, device)
    maker = begin(ground, config, seed=0)
    classes = torch.arange(spec.classes).repeat_interleave(config.ipc).to(device)
    soft = spec.classes if config.soft_labels or maker.learns_labels else None
    images = ground.noise(len(classes))
    learned = SyntheticParameters.begin(images, classes, step_size=config.step_size, soft=soft)
    with limited_threads(threads or maker.threads(learned)):
        peak = peak_bytes(lambda: maker.estimate(learned, 0), device)
        began, done = _now(device), 0
        while done == 0 or _now(device) - began < TIMED_SECONDS:
            done += 1
            maker.estimate(learned, done)
        return (_now(device) - began) / done, peak


def _now(device: torch.device) -> float:
    """The time when all that was begun on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
