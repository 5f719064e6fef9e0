"""The outer loop that all methods share: optimize, choose by validation, log, checkpoint, resume.

A method says what the gradient is; everything else is here. On the CPU a run that is killed at any
moment and started again ends with the same bits as one that was left alone: every draw belongs to
(seed, iteration), and a checkpoint holds what the optimizer remembers.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from trajmatch.config import DistillConfig
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import Score
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.storage import Tracker, open_tracker
from trajmatch.storage.files import open_tensors, save_tensors
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Tensor

MOMENTUM = 0.5
SNAPSHOTS = 40
SKIPS_IN_A_ROW = 50
CHECKPOINT = "checkpoint.safetensors"
KIND, VERSION = "checkpoint", 1
_CARRIED = "carried."


@runtime_checkable
class Method(Protocol):
    """What the loop needs to know of a method."""

    name: str
    decisions: dict[str, Any]
    """What the method decided for this run and must repeat when it is resumed."""
    carried: dict[str, Tensor]
    """What one iteration hands to the next, if anything."""
    normalized: bool
    """Whether a loss above `skip_loss` tells that the images led astray."""

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        """The loss of one iteration and its gradients: a function of its arguments alone."""


@dataclass
class State:
    """Everything that one iteration hands to the next."""

    learned: SyntheticParameters
    momentum: dict[str, Tensor]
    average: Tensor
    """Of the images; the images themselves when `ema` is 0."""
    iteration: int = 0
    armed: bool = False
    """Whether a loss has come below `skip_loss`: real images commonly begin above it."""
    skipped_in_a_row: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    """Iteration and validation score of the set that is kept."""
    seconds: float = 0.0

    @staticmethod
    def begin(learned: SyntheticParameters) -> State:
        zeros = {name: torch.zeros_like(part) for name, part in learned.tensors().items()}
        return State(learned, zeros, learned.images)

    def kept(self) -> SyntheticParameters:
        """The learned set as it is kept: with the average of the images."""
        return self.learned.with_tensors({"images": self.average})


@dataclass(frozen=True)
class Outcome:
    """Where a run ended."""

    best: SyntheticSet
    last: SyntheticSet
    best_iteration: int
    best_validation: dict[str, Any]
    iterations: int
    seconds: float
    """Of the loop alone, all runs of it together."""
    decisions: dict[str, Any]


def run_loop(
    method: Method,
    initial: SyntheticParameters,
    config: DistillConfig,
    out: Path,
    *,
    package: Callable[[SyntheticParameters, int], SyntheticSet],
    validate: Callable[[SyntheticSet, int], Score],
    origin: Mapping[str, Any],
    tracker: str | None = None,
    on_iteration: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Outcome:
    """Run `method` for `config.iterations` iterations, or what is left of them in `out`.

    `package` makes a set of what is learned; `validate` scores it on validation data: the set of
    the best score is kept as `out`/best, the newest as `out`/last. `origin` holds all that
    determines the numbers; a checkpoint of another origin is refused.

    Raises MismatchError for such a checkpoint, SettingError when updates are skipped without end.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        return _run(method, initial, config, out, package, validate, origin, tracker, on_iteration)


def _run(
    method: Method,
    initial: SyntheticParameters,
    config: DistillConfig,
    out: Path,
    package: Callable[[SyntheticParameters, int], SyntheticSet],
    validate: Callable[[SyntheticSet, int], Score],
    origin: Mapping[str, Any],
    tracker: str | None,
    on_iteration: Callable[[int, Mapping[str, float]], None] | None,
) -> Outcome:
    state = _resume(out, State.begin(initial), origin, method)
    log = open_tracker(out, tracker, until=state.iteration)
    if state.iteration == 0:
        _snapshot(out, package(state.kept(), 0), 0)
    stride = -(-config.iterations // SNAPSHOTS)
    try:
        while state.iteration < config.iterations:
            began = time.perf_counter()
            values = _iterate(method, state, config)
            state.seconds += time.perf_counter() - began
            log.log(state.iteration, {**values, "seconds": time.perf_counter() - began})
            last = state.iteration == config.iterations
            due = last or state.iteration % config.eval_every == 0
            if due:
                _choose(state, package, validate, out, log)
            if due or state.iteration % stride == 0:
                _snapshot(out, package(state.kept(), state.iteration), state.iteration)
            if due or state.iteration % config.checkpoint_every == 0:
                _save(out, state, origin, method)
            if on_iteration is not None:
                on_iteration(state.iteration, values)
    finally:
        log.close()
    return Outcome(
        best=SyntheticSet.load(out / "best"),
        last=SyntheticSet.load(out / "last"),
        best_iteration=int(state.best["iteration"]),
        best_validation=state.best,
        iterations=state.iteration,
        seconds=state.seconds,
        decisions=dict(method.decisions),
    )


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the end of the process frees, whatever ended it."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingError(
                f"another process is distilling into {out}; wait for it, or give another --out"
            ) from None
        yield


def _iterate(method: Method, state: State, config: DistillConfig) -> dict[str, float]:
    """One iteration: estimate, guard, update `state`. Waits for the device once, at the end."""
    estimate = method.estimate(state.learned, state.iteration)
    gradients = estimate.of(state.learned)
    # lr_lr is published for SGD on alpha itself; to first order a step of lr_lr / alpha_0^2 on
    # log(alpha) is the same step, and it cannot make alpha negative.
    rates = {
        "images": config.lr_img,
        "log_step_size": config.lr_lr / config.step_size**2,
        "label_logits": config.lr_label,
    }
    before = state.learned.tensors()
    momentum = {n: MOMENTUM * state.momentum[n] + g for n, g in gradients.items()}
    after = {n: before[n] - rates[n] * m for n, m in momentum.items()}
    finite = torch.stack([t.isfinite().all() for t in [*after.values(), estimate.loss]]).all()
    numbers = torch.stack(
        [
            estimate.loss.double(),
            state.learned.step_size.double(),
            gradients["images" if "images" in gradients else "label_logits"].double().norm(),
            finite.double(),
        ]
    ).tolist()
    values = dict(zip(("loss", "step_size", "grad_norm", "finite"), numbers, strict=True))
    if "log_step_size" not in gradients:  # no part of what is learned
        del values["step_size"]
    state.iteration += 1
    if not values.pop("finite"):
        # Back to where this iteration began, without the momentum that led out.
        state.momentum = {n: torch.zeros_like(m) for n, m in state.momentum.items()}
        _skip(state, values, config)
    elif method.normalized and state.armed and values["loss"] > config.skip_loss:
        _skip(state, values, config)
    else:
        state.armed = state.armed or values["loss"] <= config.skip_loss
        state.momentum = {**state.momentum, **momentum}
        state.learned = state.learned.with_tensors({**before, **after})
        state.skipped_in_a_row = 0
        values["skipped"] = 0.0
    images = state.learned.images
    state.average = torch.lerp(images, state.average, config.ema) if config.ema else images
    return values


def _skip(state: State, values: dict[str, float], config: DistillConfig) -> None:
    values["skipped"] = 1.0
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row >= SKIPS_IN_A_ROW:
        step = f", step size {values['step_size']:.3g}" if "step_size" in values else ""
        mend = f"--lr-img (now {config.lr_img:g})"
        if step:
            mend += " or --step-size"
        raise SettingError(
            f"{SKIPS_IN_A_ROW} updates in a row were skipped, the last at iteration "
            f"{state.iteration} with loss {values['loss']:.3g} (skip_loss {config.skip_loss:g}"
            f"{step}): the run has diverged; start again with a lower {mend}, or a higher "
            "--skip-loss"
        )


def _choose(
    state: State,
    package: Callable[[SyntheticParameters, int], SyntheticSet],
    validate: Callable[[SyntheticSet, int], Score],
    out: Path,
    log: Tracker,
) -> None:
    """Score the set on validation data; keep it as the last, and as the best if it is."""
    made = package(state.kept(), state.iteration)
    score = validate(made, state.iteration)
    log.log(state.iteration, {"val_mean": score.mean, "val_sd": score.sd, "val_n": score.n})
    made.save(out / "last")
    if not state.best or score.mean > state.best["mean"]:
        made.save(out / "best")
        state.best = {
            "iteration": state.iteration, "mean": score.mean, "sd": score.sd, "n": score.n,
        }  # fmt: skip


def _snapshot(out: Path, made: SyntheticSet, iteration: int) -> None:
    """The pictures as they are now, for the page's slider."""
    folder = out / "snapshots"
    folder.mkdir(exist_ok=True)
    save_tensors(
        folder / f"{iteration:06d}.safetensors",
        {"images": made.pixels(), "labels": made.hard_labels},
        kind="snapshot",
        version=1,
        metadata={"iteration": iteration},
    )


def _save(out: Path, state: State, origin: Mapping[str, Any], method: Method) -> None:
    learned = state.learned.tensors()
    tensors = {f"learned.{name}": part.reshape(-1) for name, part in learned.items()}
    tensors |= {f"momentum.{name}": part.reshape(-1) for name, part in state.momentum.items()}
    tensors |= {f"{_CARRIED}{name}": part for name, part in method.carried.items()}
    tensors["average"] = state.average.reshape(-1)
    save_tensors(
        out / CHECKPOINT,
        tensors,
        kind=KIND,
        version=VERSION,
        metadata={
            "origin": dict(origin),
            "decisions": method.decisions,
            "iteration": state.iteration,
            "armed": state.armed,
            "skipped_in_a_row": state.skipped_in_a_row,
            "best": state.best,
            "seconds": state.seconds,
        },
    )


def _resume(out: Path, fresh: State, origin: Mapping[str, Any], method: Method) -> State:
    """The state of the checkpoint in `out`, or `fresh` when there is none."""
    path = out / CHECKPOINT
    if not path.exists():
        return fresh
    file = open_tensors(path, kind=KIND, version=VERSION)
    saved = file.metadata
    for name, value in origin.items():
        if saved["origin"].get(name) != value:
            raise MismatchError(
                f"{out} holds a run with {name}={saved['origin'].get(name)}, this one has "
                f"{name}={value}; give the same to continue it, or another --out"
            )

    def part(name: str, like: Tensor) -> Tensor:
        return file.read(name).reshape(like.shape).to(like)

    parts = fresh.learned.tensors()
    learned = {name: part(f"learned.{name}", like) for name, like in parts.items()}
    momentum = {name: part(f"momentum.{name}", like) for name, like in parts.items()}
    method.decisions.update(saved["decisions"])
    for name in file.names:
        if name.startswith(_CARRIED):
            method.carried[name.removeprefix(_CARRIED)] = file.read(name).to(fresh.average.device)
    return State(
        learned=fresh.learned.with_tensors(learned),
        momentum=momentum,
        average=part("average", fresh.average),
        iteration=saved["iteration"],
        armed=saved["armed"],
        skipped_in_a_row=saved["skipped_in_a_row"],
        best=saved["best"],
        seconds=saved["seconds"],
    )
