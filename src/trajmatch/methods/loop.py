"""The outer loop of all methods: optimize, select by validation, log, checkpoint, resume.

A method gives the gradient; everything else is here. On the CPU a run that is killed at any moment
and started again ends with the same bits as one that was left alone: every draw belongs to (seed,
iteration), and a checkpoint holds the state of optimizer and method.

The set that a run begins with is validated too, so the best is never worse, by validation, than
that. So is the newest set at the end of a run; where that is not a multiple of `eval_every`, a
longer run drops it again, to be the same as if it had been as long from the start.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch

from trajmatch.errors import SettingError
from trajmatch.methods.base import Method
from trajmatch.methods.state import (
    Distillation,
    Outcome,
    State,
    fingerprint_in,
    is_due,
    restore_best,
    resumed_state,
    save_state,
    superseded,
)
from trajmatch.runtime.interruption import immediate, pending, postponed, raise_pending
from trajmatch.runtime.progress import SILENT, Progress
from trajmatch.storage import JsonlTracker
from trajmatch.storage.files import save_tensors
from trajmatch.storage.folder import claim
from trajmatch.storage.jsonl import sound_lines
from trajmatch.synthetic import SyntheticSet
from trajmatch.units import number

SNAPSHOTS = 40
NO_LIMIT = 1e12
"""A `skip_loss` that only a loss that is not finite exceeds."""
SKIPS_IN_A_ROW = 50
COLLAPSED = 5
"""A step size this many times below where it began moves the student so little that the loss stays
near 1 whatever the images are."""


def run_loop(run: Distillation, out: Path, *, progress: Progress = SILENT) -> Outcome:
    """Do `run.config.iterations` iterations, or what is left of them in `out`.

    The set of the best validation score is kept as `out`/best, the newest as `out`/last.
    progress: an observer of iterations and validations beside `out`/log.jsonl.

    Raises MismatchError for a checkpoint of another origin and for another set in `out`/best,
    SettingError when 50 updates in a row are skipped or `out` cannot be claimed (`storage.folder`).
    """
    with claim(out, "distill"):
        return _run(run, out, progress)


def _run(run: Distillation, out: Path, progress: Progress) -> Outcome:
    resumed = resumed_state(run, out)
    if resumed is not None:
        restore_best(run, resumed, out)
    log = JsonlTracker(out / "log.jsonl", drop=superseded(run, resumed))
    state = resumed or State.begin(run.initial, run.optimizer)
    with contextlib.closing(log), postponed():
        if resumed is not None:
            progress.update("distill", state.iteration, run.config.iterations)
        if not state.validated:
            _validate(run, state, out, log, progress)
        _iterations(run, state, out, log, progress)
    _say_skipped(run, state, out, progress)
    best, _ = state.chosen
    last = run.package(state.averaged(), state.iteration)
    if fingerprint_in(out / "last") != last.fingerprint:
        last.save(out / "last")
    return Outcome(
        best=SyntheticSet.load(out / "best"),
        last=SyntheticSet.load(out / "last"),
        best_iteration=int(best["iteration"]),
        best_validation=best,
        iterations=state.iteration,
        seconds=state.seconds,
        resolved=dict(run.problem.resolved),
    )


def _iterations(
    run: Distillation, state: State, out: Path, log: JsonlTracker, progress: Progress
) -> None:
    """What is left of the iterations."""
    config = run.config
    stride, before = -(-config.iterations // SNAPSHOTS), None
    while state.iteration < config.iterations:
        began = time.perf_counter()
        values = iterate(run, state)
        before = _require_step_size(run, before, values)
        state.seconds += time.perf_counter() - began
        log.log(state.iteration, {**values, "seconds": time.perf_counter() - began})
        if run.problem.notes:
            log.event("resolved", **run.problem.resolved, **run.problem.notes)
            run.problem.notes.clear()
        if is_due(config, state.iteration) or state.iteration == config.iterations:
            _validate(run, state, out, log, progress)
        else:
            if state.iteration % stride == 0:
                _snapshot(out, run.package(state.averaged(), state.iteration), state.iteration)
            if state.iteration % config.checkpoint_every == 0 or pending():
                save_state(out, state, run)
        progress.update("distill", state.iteration, config.iterations, **values)
        raise_pending()


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
    after, optimizer = run.optimizer.step(before, gradients, rates, state.optimizer)
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
    limit = skip_limit(method)
    if not values.pop("finite"):
        # Back to where this iteration began, without the optimizer state that led out.
        state.optimizer = run.optimizer.start(before)
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


class StepSizeError(SettingError):
    """The learned step size has collapsed."""

    first: float = 0.0
    """Where it began."""


def _require_step_size(
    run: Distillation, before: float | None, values: dict[str, float]
) -> float | None:
    """The step size of an iteration. Raises StepSizeError where it has collapsed since the one
    before; None: the first iteration of a call, which may go on with a run of version 0.1."""
    first = run.method.first_step_size
    step_size, limit = values.get("step_size"), first / COLLAPSED
    if step_size is None or before is None or not step_size <= limit < before:
        return step_size
    error = StepSizeError(
        f"the step size fell from {number(first)} to {number(step_size)}, where the student hardly "
        f"moves, and the images learn little; start again with --step-size={number(first / 2, 2)}, "
        "fewer --syn-steps, or a smaller rate of the step size"
    )
    error.first = first
    raise error


def skip_limit(method: Method) -> float:
    """The loss above which an update of a `normalized` method is skipped."""
    limit = getattr(method, "skip_loss", None)
    return 1.0 if limit is None else float(limit)


def _skip(run: Distillation, state: State, values: dict[str, float], limit: float) -> None:
    values["skipped"] = 1.0
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row < SKIPS_IN_A_ROW:
        return
    step = f", step size {values['step_size']:.3g}" if "step_size" in values else ""
    rate = getattr(run.method, "lr_img", None)
    lower = [f"--lr-img (now {rate:g})"] if rate is not None else []
    mend = " or ".join(lower + (["--step-size"] if step else []))
    limited, higher = f"skip_loss {limit:g}", ", or a higher --skip-loss"
    if limit >= NO_LIMIT:
        limited, higher = "not finite", ""
    raise SettingError(
        f"{SKIPS_IN_A_ROW} updates in a row were skipped, the last at iteration "
        f"{state.iteration} with loss {values['loss']:.3g} ({limited}{step}): the run has "
        f"diverged; start again with a lower {mend}{higher}"
    )


def _validate(
    run: Distillation, state: State, out: Path, log: JsonlTracker, progress: Progress
) -> None:
    """Score the set on validation data; keep it as the last, and as the best if it is; checkpoint.

    The checkpoint comes before the best set: it has all that the set is written from.
    """
    distilled = run.package(state.averaged(), state.iteration)
    state.validated = False
    try:
        with immediate():  # it may take minutes
            score = run.validate(distilled, state.iteration)
    except KeyboardInterrupt:
        if state.iteration:
            save_state(out, state, run)
        raise
    state.validated = True
    values = {"val_mean": score.mean, "val_sd": score.sd, "val_n": score.n}
    log.log(state.iteration, values)
    progress.event("validation", iteration=state.iteration, **values)
    distilled.save(out / "last")
    _snapshot(out, distilled, state.iteration)
    found = {"iteration": state.iteration, "mean": score.mean, "sd": score.sd, "n": score.n}
    if not is_due(run.config, state.iteration) and state.best_parameters is not None:
        state.final = found
    elif not state.best or score.mean > state.best["mean"]:
        state.best, state.best_parameters = found, state.averaged()
    is_best = state.chosen[0] is found
    if is_best and distilled.fingerprint not in state.written:
        state.written.append(distilled.fingerprint)
    save_state(out, state, run)
    if is_best:
        distilled.save(out / "best")


def _say_skipped(run: Distillation, state: State, out: Path, progress: Progress) -> None:
    """How many updates were skipped, over all calls."""
    lines = sound_lines(out / "log.jsonl")
    count = sum(bool(line.get("skipped")) for line in lines if "step" in line)
    if count:
        limit = skip_limit(run.method)
        limited = run.method.normalized and limit < NO_LIMIT
        reason = f"loss above {limit:g}, or not finite" if limited else "not finite"
        progress.message(f"{count:,} of {state.iteration:,} updates were skipped ({reason})")


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
