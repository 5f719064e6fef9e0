"""The outer loop of all methods: optimize, select by validation, log, checkpoint, resume.

A method gives the gradient; everything else is here. On the CPU a run that is killed at any moment
and started again ends with the same bits as one that was left alone: every draw belongs to (seed,
iteration), and a checkpoint holds the state of optimizer and method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError
from trajmatch.evaluation import Score
from trajmatch.methods.base import Method
from trajmatch.methods.checkpoint import Checkpoint, lock_run
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.storage import JsonlTracker
from trajmatch.storage.files import save_tensors
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Tensor

SNAPSHOTS = 40
SKIPS_IN_A_ROW = 50


@dataclass(frozen=True)
class Distillation:
    """Everything that determines a run."""

    method: Method
    problem: Problem
    initial: SyntheticParameters
    config: DistillConfig
    package: Callable[[SyntheticParameters, int], SyntheticSet]
    """The set of parameters and iteration."""
    validate: Callable[[SyntheticSet, int], Score]
    """Its score on validation data."""
    origin: Mapping[str, Any]
    """All that determines the numbers; a checkpoint of another origin is refused."""


@dataclass
class State:
    """Everything that one iteration hands to the next."""

    parameters: SyntheticParameters
    optimizer: dict[str, Tensor]
    """The outer optimizer's state."""
    average: Tensor
    """Of the images; the images themselves when `ema` is 0."""
    iteration: int = 0
    armed: bool = False
    """Whether a loss has come below `skip_loss`: real images commonly begin above it."""
    skipped_in_a_row: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    """Iteration and validation score of the best set."""
    seconds: float = 0.0

    @staticmethod
    def begin(parameters: SyntheticParameters, config: DistillConfig) -> State:
        return State(parameters, config.optimizer.start(parameters.tensors()), parameters.images)

    def averaged(self) -> SyntheticParameters:
        """The parameters with the average of the images."""
        return self.parameters.with_tensors({"images": self.average})


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
    resolved: dict[str, Any]
    """What the method settled for the run."""


def run_loop(run: Distillation, out: Path, *, progress: Progress = SILENT) -> Outcome:
    """Do `run.config.iterations` iterations, or what is left of them in `out`.

    The set of the best validation score is kept as `out`/best, the newest as `out`/last.
    progress: an observer of iterations and validations beside `out`/log.jsonl.

    Raises MismatchError for a checkpoint of another origin, SettingError when 50 updates in a row
    are skipped or another process is distilling into `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    with lock_run(out):
        return _run(run, out, progress)


def _run(run: Distillation, out: Path, progress: Progress) -> Outcome:
    config = run.config
    state = _resumed(run, out)
    log = JsonlTracker(out / "log.jsonl", drop=lambda line: line.get("step", 0) > state.iteration)
    if state.iteration == 0:
        _snapshot(out, run.package(state.averaged(), 0), 0)
    else:
        progress.update("distill", state.iteration, config.iterations)
    stride = -(-config.iterations // SNAPSHOTS)
    try:
        while state.iteration < config.iterations:
            began = time.perf_counter()
            values = iterate(run, state)
            state.seconds += time.perf_counter() - began
            log.log(state.iteration, {**values, "seconds": time.perf_counter() - began})
            last = state.iteration == config.iterations
            due = last or state.iteration % config.eval_every == 0
            if due:
                _validate(run, state, out, log, progress)
            if due or state.iteration % stride == 0:
                package = run.package(state.averaged(), state.iteration)
                _snapshot(out, package, state.iteration)
            if due or state.iteration % config.checkpoint_every == 0:
                _save(out, state, run)
            progress.update("distill", state.iteration, config.iterations, **values)
    finally:
        log.close()
    return Outcome(
        best=SyntheticSet.load(out / "best"),
        last=SyntheticSet.load(out / "last"),
        best_iteration=int(state.best["iteration"]),
        best_validation=state.best,
        iterations=state.iteration,
        seconds=state.seconds,
        resolved=dict(run.problem.resolved),
    )


def iterate(run: Distillation, state: State) -> dict[str, float]:
    """One iteration: estimate, guard, update `state`. Waits for the device once, at the end.

    Returns the log line's numbers: loss, step_size where it is learned, grad_norm, skipped.
    """
    method, config = run.method, run.config
    estimate = method.estimate(run.problem, state.parameters, state.iteration)
    gradients = estimate.of(state.parameters)
    factor = config.schedule.factor(state.iteration, config.iterations)
    rates = {name: factor * rate for name, rate in method.rates.items()}
    before = state.parameters.tensors()
    after, optimizer = config.optimizer.step(before, gradients, rates, state.optimizer)
    finite = torch.stack([t.isfinite().all() for t in [*after.values(), estimate.loss]]).all()
    numbers = torch.stack(
        [
            estimate.loss.double(),
            state.parameters.step_size.double(),
            gradients["images" if "images" in gradients else "label_logits"].double().norm(),
            finite.double(),
        ]
    ).tolist()
    values = dict(zip(("loss", "step_size", "grad_norm", "finite"), numbers, strict=True))
    if "log_step_size" not in gradients:  # not learned
        del values["step_size"]
    state.iteration += 1
    limit = getattr(method, "skip_loss", 1.0)
    if not values.pop("finite"):
        # Back to where this iteration began, without the optimizer state that led out.
        state.optimizer = config.optimizer.start(before)
        _skip(run, state, values, limit)
    elif method.normalized and state.armed and values["loss"] > limit:
        _skip(run, state, values, limit)
    else:
        state.armed = state.armed or values["loss"] <= limit
        state.optimizer = optimizer
        state.parameters = state.parameters.with_tensors(after)
        state.skipped_in_a_row = 0
        values["skipped"] = 0.0
    images = state.parameters.images
    state.average = torch.lerp(images, state.average, config.ema) if config.ema else images
    return values


def _skip(run: Distillation, state: State, values: dict[str, float], limit: float) -> None:
    values["skipped"] = 1.0
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row < SKIPS_IN_A_ROW:
        return
    step = f", step size {values['step_size']:.3g}" if "step_size" in values else ""
    rate = getattr(run.method, "lr_img", None)
    lower = [f"--lr-img (now {rate:g})"] if rate is not None else []
    mend = " or ".join(lower + (["--step-size"] if step else []))
    raise SettingError(
        f"{SKIPS_IN_A_ROW} updates in a row were skipped, the last at iteration "
        f"{state.iteration} with loss {values['loss']:.3g} (skip_loss {limit:g}"
        f"{step}): the run has diverged; start again with a lower {mend}, or a higher "
        "--skip-loss"
    )


def _validate(
    run: Distillation, state: State, out: Path, log: JsonlTracker, progress: Progress
) -> None:
    """Score the set on validation data; keep it as the last, and as the best if it is."""
    distilled = run.package(state.averaged(), state.iteration)
    score = run.validate(distilled, state.iteration)
    values = {"val_mean": score.mean, "val_sd": score.sd, "val_n": score.n}
    log.log(state.iteration, values)
    progress.event("validation", iteration=state.iteration, **values)
    distilled.save(out / "last")
    if not state.best or score.mean > state.best["mean"]:
        distilled.save(out / "best")
        state.best = {
            "iteration": state.iteration, "mean": score.mean, "sd": score.sd, "n": score.n,
        }  # fmt: skip


def _snapshot(out: Path, distilled: SyntheticSet, iteration: int) -> None:
    """The pictures as they are now, for the page's slider."""
    folder = out / "snapshots"
    folder.mkdir(exist_ok=True)
    save_tensors(
        folder / f"{iteration:06d}.safetensors",
        {"images": distilled.pixels(), "labels": distilled.hard_labels},
        kind="snapshot",
        version=1,
        metadata={"iteration": iteration},
    )


def _save(out: Path, state: State, run: Distillation) -> None:
    Checkpoint(
        state.parameters.tensors(),
        state.optimizer,
        run.problem.state,
        state.average,
        {
            "origin": dict(run.origin),
            "resolved": run.problem.resolved,
            "iteration": state.iteration,
            "armed": state.armed,
            "skipped_in_a_row": state.skipped_in_a_row,
            "best": state.best,
            "seconds": state.seconds,
        },
    ).save(out)


def _resumed(run: Distillation, out: Path) -> State:
    """The state of the checkpoint in `out`, or that of the first iteration without one."""
    fresh = State.begin(run.initial, run.config)
    found = Checkpoint.load(out, fresh.parameters.tensors(), run.origin)
    if found is None:
        return fresh
    run.problem.resolved.update(found.values["resolved"])
    run.problem.state.update(found.state)
    return State(
        parameters=fresh.parameters.with_tensors(found.parameters),
        optimizer=found.optimizer,
        average=found.average.to(fresh.average),
        iteration=found.values["iteration"],
        armed=found.values["armed"],
        skipped_in_a_row=found.values["skipped_in_a_row"],
        best=found.values["best"],
        seconds=found.values["seconds"],
    )
