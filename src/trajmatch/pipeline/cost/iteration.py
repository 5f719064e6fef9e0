"""One iteration of a run's method, measured on random images; of a long one a part."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch

from trajmatch.methods import Method, Problem, SyntheticParameters, UnrolledMethod
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import parameter_vector
from trajmatch.pipeline.cost.noise import NoiseProblem
from trajmatch.pipeline.cost.shape import Shape
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.memory import peak_bytes, saved_bytes
from trajmatch.runtime.resources import Resources
from trajmatch.runtime.threads import limited_threads
from trajmatch.units import byte_size
from trajmatch.unroll import plan

Clock = Callable[[], float]
"""Seconds since some moment, as time.perf_counter."""

LIMIT_SECONDS = 2.0
"""The longest iteration that is measured, as far as its smaller parts predict."""
TIMED_SECONDS = 0.4
"""How long work is repeated, at least."""
SUPERLINEAR = 1.5
"""Growth beyond proportion that is not taken for noise of the clock."""


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iteration of a method in a run."""

    seconds: float
    peak: int
    """Bytes at the peak, besides the training images and the synthetic parameters."""
    reads_images: bool
    """Whether it reads training images, so that a run keeps all of them whitened."""
    measured: str
    """How it was measured: `dm's own, timed on noise, 25 % of one`."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of an iteration: a method that does less, or the same one for fewer classes."""

    share: float
    """Of the iteration's work."""
    method: Method
    classes: int

    @property
    def steps(self) -> int:
        """Student steps that are differentiated; 0 for a method that unrolls no student."""
        if not isinstance(self.method, UnrolledMethod):
            return 0
        return self.method.differentiated_steps or self.method.student_steps

    @property
    def loop(self) -> tuple[int, ...]:
        """Unrolls and their steps; empty for a method that unrolls no student."""
        method = self.method
        return (method.segments, method.student_steps) if isinstance(method, UnrolledMethod) else ()


@dataclasses.dataclass(frozen=True)
class Saved:
    """What the engine saves of a student's steps in the run."""

    steps: int
    keep: int
    """Steps whose residuals are kept; of the others their parameters."""
    residuals: int
    """Bytes, of one step."""
    parameters: int
    """Bytes."""

    @classmethod
    def of(cls, full: Part, problem: Problem, parameters: SyntheticParameters) -> Saved:
        """As the engine plans it. Costs a step's forward and backward pass."""
        method, start = full.method, parameter_vector(problem.module)
        if not isinstance(method, UnrolledMethod):
            return cls(0, 0, 0, 0)
        student = method.student(problem, parameters, 0, 0)
        each = saved_bytes(lambda: student.residuals(0, start, keep=True))
        keep = plan(student, start, method.gradient, method.differentiated_steps).keep
        return cls(full.steps, keep, each, 4 * len(start))

    def saved(self, steps: int) -> int:
        """How many of fewer steps are the same share."""
        return round(self.keep * steps / max(1, self.steps))

    def bytes(self, steps: int) -> int:
        keep = self.saved(steps)
        return keep * self.residuals + (steps - keep) * self.parameters


def measure_iteration(
    recipe: Recipe, spec: NetworkSpec, shape: Shape, resources: Resources, clock: Clock
) -> Iteration:
    """Time and memory of an iteration.

    Its parts are measured from the smallest, as long as the next is predicted to take at most
    `LIMIT_SECONDS`; what is left out is extrapolated.
    """
    config, device = recipe.distill, resources.torch_device
    method = recipe.method.assumed()
    parts = parts_of(method, config.ipc, spec.classes)
    of_class = max(1, shape.train // shape.classes)

    def begun(part: Part) -> tuple[NoiseProblem, SyntheticParameters]:
        fewer = dataclasses.replace(spec, classes=part.classes)
        problem = NoiseProblem.like(fewer, of_class, device, config.precision)
        return problem, problem.parameters(part.method, config.ipc)

    full = begun(parts[-1])
    threads = resources.threads or method.threads(*full)
    saved = Saved.of(parts[-1], *full)
    seconds: list[tuple[float, float]] = []
    peaks: list[tuple[Part, int]] = []
    for part in parts:
        if seconds and extrapolated(seconds, part.share) > LIMIT_SECONDS:
            break
        problem, parameters = begun(part)
        problem.resolved.update(keep=saved.saved(part.steps), compile=False)
        with limited_threads(threads):
            one, peak = _measured(part.method, problem, parameters, clock)
        seconds.append((part.share, one))
        peaks.append((part, peak))
    share = peaks[-1][0].share
    words = f"{method.name}'s own, timed on noise"
    words += f", {100 * share:.2g} % of one" if share < 0.999 else ""
    if saved.steps:
        words += (
            f"; keeping {saved.keep} of {saved.steps} steps ({byte_size(saved.residuals)} each)"
        )
    peak = _full_peak(parts, peaks, saved)
    return Iteration(extrapolated(seconds, 1.0), peak, problem.reads_images, words)


def parts_of(method: Method, ipc: int, classes: int) -> list[Part]:
    """Parts of an iteration, each about twice the one before; the last is the whole."""
    parts = [Part(1.0, method, classes)]
    while (smaller := parts[-1].method.scaled_down(ipc * classes))[1] > 1:
        parts.append(Part(parts[-1].share / smaller[1], smaller[0], classes))
    while parts[-1].classes > 2 and not parts[-1].steps:  # a student's batch is cut, not classes
        fewer = max(2, -(-parts[-1].classes // 2))
        share = parts[-1].share * fewer / parts[-1].classes
        parts.append(Part(share, parts[-1].method, fewer))
    return parts[::-1]


def _measured(
    method: Method, problem: Problem, parameters: SyntheticParameters, clock: Clock
) -> tuple[float, int]:
    """Seconds of an iteration after the first, and the peak of the first."""
    peak = 0

    def work(number: int) -> None:
        nonlocal peak
        if number:
            method.estimate(problem, parameters, number)
        else:
            peak = peak_bytes(lambda: method.estimate(problem, parameters, 0), problem.device)

    return timed(work, problem.device, clock), peak


def _full_peak(parts: Sequence[Part], peaks: Sequence[tuple[Part, int]], saved: Saved) -> int:
    """The peak of a whole iteration: a longer loop adds only what the engine saves."""
    last = peaks[-1][0]
    points = [(part.share, float(peak)) for part, peak in peaks if part.loop == last.loop]
    full_batch = max(part.share for part in parts if part.loop == last.loop)
    return (
        round(extrapolated(points, full_batch)) + saved.bytes(saved.steps) - saved.bytes(last.steps)
    )


def timed(work: Callable[[int], object], device: torch.device, clock: Clock) -> float:
    """The median time of work(1), work(2), ... after work(0), which prepares it."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    work(0)
    times: list[float] = []
    while sum(times) < TIMED_SECONDS and len(times) < 50:
        began = now()
        work(len(times) + 1)
        times.append(now() - began)
    return statistics.median(times)


def extrapolated(points: Sequence[tuple[float, float]], size: float) -> float:
    """The value at `size`, from (size, value) in rising order, of which the last two count.

    One point: in proportion. Two: a fixed part and one in proportion to the size; the square of the
    size where the value grows much faster than the size.

    >>> extrapolated([(1.0, 3.0)], 4.0)
    12.0
    >>> extrapolated([(1.0, 3.0), (2.0, 4.0)], 4.0)
    6.0
    >>> extrapolated([(1.0, 3.0), (2.0, 10.0)], 4.0)
    40.0
    """
    (last, value), (before, less) = points[-1], points[-2] if len(points) > 1 else (0.0, 0.0)
    if less > 0 and value > SUPERLINEAR * less * last / before:
        return value * (size / last) ** 2
    return value + max(0.0, value - less) / (last - before) * (size - last)
