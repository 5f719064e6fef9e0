"""The curves of a run, from its log: loss, step size, validation accuracy."""

from __future__ import annotations

import math

from trajmatch.report.figures.curve import Curve
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import method_facts
from trajmatch.units import NBSP


def run_curves(run: RunFolder) -> list[Curve]:
    """Those of which at least one finite value was logged."""
    if not run.distills:
        return []
    curves = (_loss(run), _step_size(run), _validation(run))
    return [curve for curve in curves if curve is not None and curve.points()]


def _loss(run: RunFolder) -> Curve | None:
    lines, method = run.log.iterations, method_facts(run.method)
    if not lines:
        return None
    return Curve(
        "loss",
        f"Loss: {method.objective}" if method.objective else "Loss",
        tuple(line.step for line in lines),
        tuple(_or_nan(line.loss) for line in lines),
        skipped=tuple(line.step for line in lines if line.skipped),
        chosen=run.result.best_iteration,
        noisy=True,
        level=(1.0, "as far as at the start") if method.starts_at_one else None,
    )


def _step_size(run: RunFolder) -> Curve | None:
    lines = run.log.iterations
    values = tuple(_or_nan(line.step_size) for line in lines)
    if len(set(values)) == 1 < len(values):  # it was fixed
        return None
    steps = tuple(line.step for line in lines)
    return Curve("step_size", "Learned step size", steps, values, chosen=run.result.best_iteration)


def _validation(run: RunFolder) -> Curve | None:
    lines = run.log.validations
    if not lines:
        return None
    counts = {line.n for line in lines}
    return Curve(
        "validation",
        "Validation accuracy, %",
        tuple(line.step for line in lines),
        tuple(_or_nan(line.mean) for line in lines),
        sd=tuple(line.sd for line in lines),
        n=counts.pop() if len(counts) == 1 else None,
        chosen=run.result.best_iteration,
        unit=f"{NBSP}%",
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
