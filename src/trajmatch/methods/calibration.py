"""M, T+, N and alpha_0 of MTT from the experts, where they are not given.

    M        the expert epochs nearest to `SEGMENT_STEPS` SGD steps
    T+       the epoch at which an expert's training loss has fallen by the share `EARLY` of its
             whole fall
    alpha_0  the step size at which N student steps on the first images go `REACH` as far as the
             experts go on the same segments
    N        `FEWEST_STEPS`, or more where alpha_0 would be above `LONGEST` times the experts' rate

The student's loss says little about alpha_0 before the images are learned: real images pull it in
other directions than the expert went, so on images like CIFAR's it is lowest at the smallest
alpha_0 that is tried. How far the student goes is known at once, and grows with alpha_0.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trajmatch.errors import SettingError
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.units import number

if TYPE_CHECKING:
    from trajmatch.experts import ExpertLibrary
    from trajmatch.methods.mtt import MTT

SEGMENT_STEPS = 120
EARLY = 0.6
FEWEST_STEPS, MOST_STEPS = 20, 60
LONGEST = 2.0
REACH = 0.5
SEGMENTS = 4
"""Segments on which the student's way is measured."""
NEAR, MOST_TRIES = 1.1, 12
"""alpha_0 is found to this factor, by at most so many tries."""
RANGE = (1e-5, 10.0)
"""Step sizes that are tried."""


def calibrate(method: MTT, problem: Problem, parameters: SyntheticParameters) -> MTT:
    """`method` with M, T+, N and alpha_0 from the experts where they are None.

    What was found, and the numbers it was found from, are in `problem.resolved["calibration"]`.
    Cost: about 5 x `SEGMENTS` x N forward and backward passes of the images, once a run.

    Raises SettingError where no step size in `RANGE` moves the student as far as it should.
    """
    left = [name for name in method.calibrates if getattr(method, name) is None]
    if not left:
        return method
    library, reasons = problem.experts, dict[str, str]()
    if method.expert_epochs is None:
        method, reasons["expert_epochs"] = _segment_length(method, library)
    if method.max_start_epoch is None:
        method, reasons["max_start_epoch"] = _last_start(method, library)
    if method.syn_steps is None:
        method, reasons["syn_steps"] = _steps(method, problem, parameters)
    if method.step_size is None:
        method, reasons["step_size"] = _step_size(method, problem, parameters)
    values = {name: getattr(method, name) for name in left}
    problem.resolved["calibration"] = {"values": values, "reasons": reasons}
    return method


def calibration_words(calibration: dict[str, Any]) -> list[str]:
    """A line for each value that was calibrated, and why: `N = 20: ...`."""
    names = {"syn_steps": "N", "expert_epochs": "M", "max_start_epoch": "T+", "step_size": "alpha"}
    return [
        f"{names[name]} = {number(calibration['values'][name])}: {reason}"
        for name, reason in calibration.get("reasons", {}).items()
    ]


def _segment_length(method: MTT, library: ExpertLibrary) -> tuple[MTT, str]:
    """M."""
    steps = _steps_per_epoch(library)
    most = library.epochs - ((method.max_start_epoch or 1) - 1)
    if most < 1:
        raise SettingError(
            f"max_start_epoch is {method.max_start_epoch} and these experts have {library.epochs} "
            f"epochs; use --max-start-epoch {library.epochs} at most"
        )
    length = min(most, max(1, round(SEGMENT_STEPS / steps)))
    reason = f"{length * steps} steps of an expert, whose epochs are {steps} steps each"
    return dataclasses.replace(method, expert_epochs=length), reason


def _last_start(method: MTT, library: ExpertLibrary) -> tuple[MTT, str]:
    """T+."""
    assert method.expert_epochs is not None
    most = library.epochs - method.expert_epochs + 1
    if most < 1:
        raise SettingError(
            f"expert_epochs is {method.expert_epochs} and these experts have {library.epochs} "
            f"epochs; use --expert-epochs {library.epochs} at most"
        )
    losses = _training_losses(library)
    if len(losses) < 2:
        return dataclasses.replace(method, max_start_epoch=most), f"experts have {library.epochs}"
    first, last = losses[0], min(losses)
    epoch = fallen(losses, EARLY)
    starts = min(most, epoch)
    reason = (
        f"by epoch {epoch} the experts' training loss has fallen from {number(first)} to "
        f"{number(losses[epoch - 1])}, of {number(last)} at the end"
    )
    if starts < epoch:
        reason += f"; their {library.epochs} epochs allow {starts}"
    return dataclasses.replace(method, max_start_epoch=starts), reason


def fallen(losses: Sequence[float], share: float) -> int:
    """The epoch, from 1 on, by which the loss has fallen by a share of its whole fall.

    Examples:
        >>> fallen([2.0, 1.5, 1.2, 1.0], 0.6), fallen([2.0, 2.0], 0.6)
        (3, 1)
    """
    limit = losses[0] - share * (losses[0] - min(losses))
    return next(n for n, loss in enumerate(losses, 1) if loss <= limit)


def _steps(method: MTT, problem: Problem, parameters: SyntheticParameters) -> tuple[MTT, str]:
    """N."""
    few = dataclasses.replace(method, syn_steps=FEWEST_STEPS)
    rate = problem.experts.settings.lr
    wanted, _ = _reaching(few, problem, parameters)
    steps = steps_for(wanted, rate)
    reason = (
        f"with {FEWEST_STEPS} the step size would be {number(wanted)}, and the experts' is "
        f"{number(rate)}"
    )
    return dataclasses.replace(method, syn_steps=steps), reason


def steps_for(step_size: float, rate: float) -> int:
    """N: so many steps that each is at most `LONGEST` times as long as the experts', in fives.

    step_size: what `FEWEST_STEPS` would take to go as far; rate: the experts'.

    Examples:
        >>> [steps_for(step_size, rate=0.01) for step_size in (0.001, 0.02, 0.03, 0.5)]
        [20, 20, 30, 60]
    """
    wanted = FEWEST_STEPS * step_size / (LONGEST * rate)
    return min(MOST_STEPS, max(FEWEST_STEPS, 5 * math.ceil(wanted / 5 - 1e-9)))


def _step_size(method: MTT, problem: Problem, parameters: SyntheticParameters) -> tuple[MTT, str]:
    """alpha_0."""
    found, ratio = _reaching(method, problem, parameters)
    reason = (
        f"{method.student_steps} steps on the first images go {ratio:.0%} as far as the experts do "
        f"(mean of {SEGMENTS} segments)"
    )
    return dataclasses.replace(method, step_size=found), reason


def _reaching(
    method: MTT, problem: Problem, parameters: SyntheticParameters
) -> tuple[float, float]:
    """The step size at which the student goes `REACH` as far as the experts, and how far it goes
    with it."""
    key = ("reaching", dataclasses.replace(method, step_size=None))
    return problem.cached(
        key,
        lambda: search(
            lambda step_size: distance_ratio(method, problem, parameters, step_size),
            start=problem.experts.settings.lr,
        ),
    )


def search(reached: Callable[[float], float], start: float) -> tuple[float, float]:
    """The step size at which `reached`, which grows with it, is `REACH` to a factor of `NEAR`, and
    what it is there. From `start` on, by secants in logarithms, within what is known.

    Where there is none, as of a student that diverges from some step size on, the nearest that was
    tried. Raises SettingError where it would be outside of `RANGE`.

    Examples:
        >>> search(lambda step_size: 20 * step_size, start=0.001)
        (0.025, 0.5)
    """
    low, high = (edge * factor for edge, factor in zip(RANGE, (0.5, 2.0), strict=True))
    guess, slope, before = start, 1.0, None
    ratios: dict[float, float] = {}
    for tries in range(MOST_TRIES):
        guess = float(f"{min(max(guess, RANGE[0]), RANGE[1]):.2g}")
        if guess in ratios:
            break
        ratio = ratios[guess] = reached(guess)
        if REACH / NEAR <= ratio <= REACH * NEAR:
            return guess, ratio
        low, high = (guess, high) if ratio < REACH else (low, guess)
        if low >= RANGE[1] or high <= RANGE[0]:
            raise SettingError(_out_of_range(guess, ratio))
        known = 0 < ratio < math.inf
        if known and before is not None and guess != before[0]:
            rise = math.log(ratio / before[1]) / math.log(guess / before[0])
            slope = min(max(rise, 0.5), 2.0)
        before = (guess, ratio) if known else before
        factor = (REACH / ratio) ** (1 / slope) if known else (100.0 if ratio == 0 else 0.01)
        guess *= factor
        if not low < guess < high or (tries > 3 and tries % 2):  # or halve what is left
            guess = math.sqrt(low * high)
    finite = {step: ratio for step, ratio in ratios.items() if 0 < ratio < math.inf}
    if not finite:
        raise SettingError(_out_of_range(guess, math.inf))
    nearest = min(finite, key=lambda step: abs(math.log(finite[step] / REACH)))
    return nearest, finite[nearest]


def _out_of_range(step_size: float, ratio: float) -> str:
    far = f"goes {ratio:.0%} as far as the experts do" if math.isfinite(ratio) else "diverges"
    student = f"with a step size of {number(step_size)} the student {far}"
    if ratio < REACH:
        return (
            f"{student}: the images may all be alike, or the experts have diverged; look at them, "
            "or give a --step-size"
        )
    return (
        f"{student}: the experts hardly move, as where all images are alike; train them with a "
        "higher learning rate or for more steps"
    )


def distance_ratio(
    method: MTT, problem: Problem, parameters: SyntheticParameters, step_size: float
) -> float:
    """||theta_N - theta_0|| over ||theta*_{t+M} - theta*_t||, the mean of the first `SEGMENTS`
    segments; infinite where the student diverges.

    Cost: `SEGMENTS` x N forward and backward passes of the images.
    """
    alpha = torch.as_tensor(step_size, dtype=parameters.images.dtype)
    found = []
    for number_ in range(SEGMENTS):
        start, loss = method.outer_problem(problem, parameters, number_, 0)
        student = method.student(problem, parameters, number_, 0)
        vector, state = start.clone(), method.inner.init(start)
        for n in range(method.student_steps):
            update = method.inner.update(
                vector, state, student.step(n, vector), alpha.to(vector.device), n
            )
            vector, state = update.vector, update.state
        way = torch.linalg.vector_norm(vector - start)
        found.append(float(way / loss.length.sqrt()))
    ratio = statistics.fmean(found)
    return ratio if math.isfinite(ratio) else math.inf


def _steps_per_epoch(library: ExpertLibrary) -> int:
    settings, images = library.settings, int(library.data["train"])
    return settings.steps_per_epoch or -(-images // settings.batch)


def _training_losses(library: ExpertLibrary) -> list[float]:
    """The mean over the experts of the training loss of each epoch; empty where none is recorded,
    as of imported experts."""
    columns = [
        [row.get("train_loss") for row in library.trajectory(expert).metrics]
        for expert in library.experts
    ]
    rows = list(zip(*columns, strict=False))
    known = [[loss for loss in row if loss is not None] for row in rows]
    return [statistics.fmean(row) for row in known] if known and all(known) else []
